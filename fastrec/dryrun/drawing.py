"""A dry run as a drawing: what is kept, rejected, unreachable and failing, by colour."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fastrec._errors import OptionError
from fastrec.dryrun.decisions import Outcome
from fastrec.dryrun.events import Event
from fastrec.events.context import PredicateFailure
from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.marks import marked
from fastrec.graph.draw.nest import ModuleRef, Nest, box_name
from fastrec.graph.draw.options import DrawingOptions
from fastrec.graph.draw.parts import Edge, Mark, Node, NodeKind, kept_text, total_mark
from fastrec.graph.draw.rules import module_style, op_style
from fastrec.graph.draw.text import counted, dimensions
from fastrec.recording._records import format_bytes

MAX_ERROR = 60
"""Letters of an error that stand on a node."""


def event_mark(outcome: Outcome) -> Mark:
    """The mark of one event."""
    verdict = outcome.verdict
    if isinstance(outcome.decision, PredicateFailure):
        first, *_ = outcome.decision.error.splitlines() or [""]
        return Mark(verdict, 0, f"fails: {first if len(first) <= MAX_ERROR else first[: MAX_ERROR - 3] + '...'}")
    return Mark(verdict, outcome.nbytes, kept_text(verdict, outcome.nbytes))


def not_shown(outcomes: Iterable[Outcome]) -> list[str]:
    """A line about events without a place in a drawing, if something is kept of them."""
    kept = [outcome.nbytes for outcome in outcomes if outcome.verdict == "kept"]
    return (
        [f"not in this picture: {counted(len(kept), 'kept value')}, {format_bytes(sum(kept))} per pass"] if kept else []
    )


def mark_of(marks: Sequence[Mark]) -> Mark:
    """The marks of events at one place as one; a single failure keeps its words."""
    return marks[0] if len(marks) == 1 else _with_error(total_mark(marks), marks)


def _with_error(total: Mark, marks: Iterable[Mark]) -> Mark:
    errors = dict.fromkeys(mark.text for mark in marks if mark.verdict == "failed")
    if not errors:
        return total
    return Mark(total.verdict, total.nbytes, ", ".join(filter(None, (kept_text("rejected", total.nbytes), *errors))))


def drawing_of(
    title: str, events: Sequence[Event], outcomes: Sequence[Outcome], options: DrawingOptions, caption: Iterable[str]
) -> Drawing:
    """The drawing of a dry run: a node for each event that a value comes from, and for each output of a root."""
    for name, plain in (("module", None), ("vis_mode", "unrolled")):
        if getattr(options, name) != plain:
            raise OptionError(
                f"{name}={getattr(options, name)!r} asks for the graph of a pass, which a dry run does not have; draw "
                "fastrec.graph.preview(model, inputs, keep_op=...), which has it"
            )
    return _Builder(title, events, outcomes, options).drawing(caption)


class _Place(NamedTuple):
    """A node before it is finished: the event whose value it shows, what it is, what it reads, and its box."""

    event: Event
    kind: NodeKind
    sources: tuple[int, ...]
    box: int


class _Builder:
    def __init__(
        self, title: str, events: Sequence[Event], outcomes: Sequence[Outcome], options: DrawingOptions
    ) -> None:
        self._title = title
        self._events = events
        self._outcomes = outcomes
        self._options = options
        self._passes = Counter(
            address for _, address, _ in {_call(event, i) for event in events for i in _depths(event)}
        )
        self._nest = Nest()
        self._box_of: dict[_ModuleCall, int] = {}
        self._node_of: dict[int, int] = {}  # by event; of what a root returns by the complement of the event's number

    def drawing(self, caption: Iterable[str]) -> Drawing:
        places = list(self._places())
        for place in places:
            self._nest.add(place.kind, place.box)
        self._nest.finish()
        edges = [
            (self._node_of[source], target)
            for target, place in enumerate(places)
            for source in place.sources
            if source in self._node_of
        ]
        from_input = _reached(places, edges)
        nodes = [self._node(place, reached) for place, reached in zip(places, from_input, strict=True)]
        self._finish_boxes(places, from_input)
        drawn = [Edge(source, target, dashed=not from_input[source]) for source, target in edges]
        lines, facts = (self._title,), EventFacts([place.event for place in places])
        drawing = Drawing(self._title, lines, nodes, self._nest.boxes, drawn, self._options, facts)
        node_marks, box_marks, missing = self._marks()
        return marked(drawing, node_marks, box_marks, [*caption, *not_shown(missing)])

    def _places(self) -> Iterator[_Place]:
        for number, event in enumerate(self._events):
            if event.links.origin == number and self._is_shown(event):
                kind: NodeKind = event.site.kind if event.site.kind in ("input", "buffer") else "op"
                self._node_of[number] = len(self._node_of)
                yield _Place(event, kind, event.links.sources, self._box(event))
            if event.site.kind == "module_exit" and len(event.site.frames) == 1:
                self._node_of[~number] = len(self._node_of)
                yield _Place(event, "output", (event.links.origin,), -1)

    def _is_shown(self, event: Event) -> bool:
        return event.site.kind != "buffer" or self._options.shows_buffer(event.site.name.removesuffix(":buffer"))

    def _box(self, event: Event) -> int:
        """The innermost box around an event."""
        calls = [_call(event, depth) for depth in _depths(event)]
        path = [
            ModuleRef(call, call.address, event.site.frames[depth].module_type, call.number, self._passes[call.address])
            for depth, call in zip(_depths(event), calls, strict=True)
        ]
        box = self._nest.box(path)
        self._box_of.update(zip(reversed(calls), self._nest.around(box), strict=True))
        return box

    def _node(self, place: _Place, from_input: bool) -> Node:
        event = place.event
        meta, box = event.meta, self._nest.boxes[place.box] if place.box >= 0 else None
        is_module = box is not None and box.is_single
        label = f"output {event.site.name}" if place.kind == "output" else meta.label
        lines = [label, f"{dimensions(meta.shape)} ({format_bytes(event.nbytes)})"]
        if box is not None and box.is_single:
            lines.append(box_name(box))
        elif place.kind == "buffer":
            lines.append(f"@{event.site.name.removesuffix(':buffer')}")
        style = op_style(place.kind, shape="box" if is_module else "ellipse", from_input=from_input)
        alike = place.kind, event.site.layer_type, event.site.output_address, meta.shape, meta.dtype
        return Node(self._nest.unique(label), place.kind, tuple(lines), style, place.box, (), alike)

    def _finish_boxes(self, places: Sequence[_Place], from_input: Sequence[bool]) -> None:
        count, reached = [0] * len(self._nest.boxes), [False] * len(self._nest.boxes)
        for place, is_reached in zip(places, from_input, strict=True):
            for index in self._nest.around(place.box):
                count[index] += place.kind == "op"
                reached[index] = reached[index] or is_reached
        for index, box in enumerate(self._nest.boxes):
            box.lines = (*box.title, counted(count[index], "operation"))
            box.style = module_style((), from_input=reached[index])

    def _marks(self) -> tuple[dict[int, Mark], dict[int, Mark], list[Outcome]]:
        """The marks of nodes and of boxes, and what becomes of events that have neither."""
        missing: list[Outcome] = []
        nodes: dict[int, list[Mark]] = defaultdict(list)
        boxes: dict[int, list[Mark]] = defaultdict(list)
        for number, (event, outcome) in enumerate(zip(self._events, self._outcomes, strict=True)):
            mark = event_mark(outcome)
            depths = _depths(event)
            box = self._box_of.get(_call(event, depths[-1]), -1) if depths else -1
            if ~number in self._node_of:
                nodes[self._node_of[~number]].append(mark)
            elif (
                event.site.kind in ("module_enter", "module_exit") and box >= 0 and not self._nest.boxes[box].is_single
            ):
                boxes[box].append(mark)
            elif event.site.kind in ("module_enter", "module_exit") and box >= 0:
                nodes[self._nest.boxes[box].nodes[0]].append(mark)
            elif event.links.origin in self._node_of:
                nodes[self._node_of[event.links.origin]].append(mark)
            else:
                missing.append(outcome)
        return {i: mark_of(m) for i, m in nodes.items()}, {i: mark_of(m) for i, m in boxes.items()}, missing


class _ModuleCall(NamedTuple):
    """One call of a module, in one pass."""

    pass_index: int
    address: str
    number: int


def _depths(event: Event) -> list[int]:
    """The positions on the stack of modules at which there is a box: a model itself has no address, and no box."""
    return [depth for depth, frame in enumerate(event.site.frames) if frame.module_address]


def _call(event: Event, depth: int) -> _ModuleCall:
    """The call at a position of an event's stack of modules."""
    return _ModuleCall(event.info.index, event.site.frames[depth].module_address, event.meta.stack_passes[depth])


def _reached(places: Sequence[_Place], edges: Iterable[tuple[int, int]]) -> list[bool]:
    """Whether each node is an input or comes from one."""
    reached = [place.kind == "input" for place in places]
    for source, target in edges:  # in the order of their targets, which is that of time
        reached[target] = reached[target] or reached[source]
    return reached


class EventFacts:
    """What a page tells of the events of a dry run."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = events

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """A column for each fact, with an entry for each node."""
        events = self._events
        return {
            "label": [event.meta.label for event in events],
            "type": [event.site.layer_type for event in events],
            "fn": [event.site.func_name for event in events],
            "site": [event.site.name for event in events],
            "shape": [dimensions(event.meta.shape) for event in events],
            "dtype": [event.meta.dtype for event in events],
            "bytes": [event.nbytes for event in events],
        }

    def about(self) -> Mapping[str, Any]:
        """How many values there are, and how large they are together."""
        return {"ops": len(self._events), "bytes": sum(event.nbytes for event in self._events), "validated": None}

    def conditions(self) -> Sequence[Mapping[str, Any]]:
        """None: a dry run does not see them."""
        return ()
