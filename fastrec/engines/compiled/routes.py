"""The routes of passes through compiled graphs, and what is fed to taps on the way.

    step ── graph A ──> step ── graph B ──> step: the pass ends
                              └─ graph C ──> ...

A model with graph breaks runs several graphs in a pass, and may take another route in another pass. A ``GraphStep`` is
where a pass is between two graphs. The first pass that comes by there is aligned with a reference trace
(``GraphRoute``), which gives the ``GraphTransition``: which taps are fed, with which outputs. Later passes only look it
up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import fx

from fastrec._errors import UnsupportedModelError
from fastrec.engines._protocol import MakePassBatch, PassBatch, PlannedTap, PlanningListener
from fastrec.engines.compiled.alignment import Alignment, facts_of
from fastrec.engines.compiled.graphs import CapturedGraph
from fastrec.engines.compiled.reference_run import ReferenceTrace, TraceEvent, TraceLeaf, TraceValue
from fastrec.engines.eager.modules import TrackedModule
from fastrec.events.sites import Site

Feed = tuple[Callable[[Any, Any], None], int]
"""What is fed, and with the output of the graph at which position."""

Links = Mapping[int, tuple[int, int]]
"""The inputs of a graph that graphs before it returned: the number of that graph in the pass, and of its output."""


class GraphStep:
    """Where a pass is after a graph has run, or before the first one.

    ``transitions`` say what is fed when a certain graph runs next, ``end_feeds`` what is fed if the pass ends here;
    None: no pass that ended here has been looked at yet. ``held`` are the outputs that such feeds may take.
    """

    def __init__(self) -> None:
        self.transitions: dict[CapturedGraph, GraphTransition] = {}
        self.end_feeds: list[Feed] | None = None
        self.held: dict[TraceLeaf, int] = {}


class GraphTransition:
    """What a run of a graph feeds.

    ``early_feeds`` come before the graph's first op, those that are True from outputs of the graph before.
    ``differentiable`` are the added outputs that would require gradients in an eager pass. If a pass runs this graph
    alone, ``batch`` takes all that it feeds in one go, from the outputs at ``batch_positions``; ``batch_slice`` is
    where these are if they are added outputs in their order.
    """

    def __init__(self, links: Links) -> None:
        self.links = links
        self.early_feeds: list[tuple[bool, Feed]] = []
        self.feeds: list[Feed] = []
        self.differentiable: list[int] = []
        self.next_step = GraphStep()
        self.batch: PassBatch[Any] | None = None
        self.batch_positions: list[int] = []
        self.batch_slice: slice | None = None
        self.has_asked_for_batch = False

    def ask_for_batch(self, n_own: int, make_batch: MakePassBatch[Any]) -> None:
        """Let passes that run this graph alone feed in one go, if only the recorder has most of the values."""
        self.has_asked_for_batch = True
        feeds = [*(feed for _, feed in self.early_feeds), *self.feeds, *(self.next_step.end_feeds or ())]
        positions = [position for _, position in feeds]
        added = [position for position in positions if position >= n_own]
        if added and len(set(added)) == len(added):
            self.batch = make_batch([tap for tap, _ in feeds], None)
            self.batch_positions = positions
            if positions == [*range(n_own, n_own + len(positions))]:
                self.batch_slice = slice(n_own, n_own + len(positions))

    def feeds_as(self, other: GraphTransition) -> bool:
        """Whether it feeds the same as another one."""
        return (self.early_feeds, self.feeds) == (other.early_feeds, other.feeds)


class GraphRoute:
    """How far a pass has come in a reference trace, graph by graph.

    Arguments:
        trace: what the pass does.
        listener: who is asked for taps.
        modules: the tracked modules by the id of the module.
    """

    def __init__(
        self, trace: ReferenceTrace, listener: PlanningListener[Any], modules: Mapping[int, TrackedModule]
    ) -> None:
        self.trace = trace
        self._listener = listener
        self._modules = modules
        self._reached = 0  # the event that comes next
        self._step: GraphStep | None = None
        self._fed: set[TraceLeaf] = set()
        self._unused_draws: set[fx.Node] = set()
        self._returned_ids: list[list[int | None]] = []  # of the tensors that each graph returned

    @property
    def n_graphs(self) -> int:
        """How many graphs have run."""
        return len(self._returned_ids)

    def advance(self, graph: CapturedGraph, inputs: Sequence[Any], links: Links) -> GraphTransition:
        """A graph runs with some inputs; what that feeds."""
        aligned = self._align(graph, inputs, links)
        while not graph.outputs.is_finished and graph.expand([aligned.ops[i] for i in self._closed(aligned)]):
            aligned = self._align(graph, inputs, links)
        self._check_unmatched(aligned)
        events = self.trace.events
        self._unused_draws = graph.unused_draws([node for i, node in aligned.ops.items() if events[i].draws])
        transition = GraphTransition(links)
        first_op = min(aligned.ops, default=self._reached)
        for index in range(self._reached, aligned.end):
            self._plan_event(graph, aligned, index, transition, is_early=index < first_op)
        # What is no op and comes after the last op of this graph, such as the return of a module, may be fed when the
        # pass ends or goes on: until then its values are held. If it goes on, the model may write to its own outputs.
        last_node = aligned.last_node(aligned.end)
        goes_on = any(event.is_op for event in events[aligned.end :])
        for index in range(aligned.end, len(events)):
            for value in () if events[index].is_op else events[index].values:
                tap, holder = value.leaf.tap(self._listener), self._holder(aligned, value, index)
                if tap is not None and holder is not None:
                    place = (holder, last_node)
                    output = self._output(graph, transition, place, tap, value, unshared=goes_on)
                    transition.next_step.held[value.leaf] = output
        self._reached = aligned.end
        self._step = transition.next_step
        self._returned_ids.append(aligned.ids_of(graph.outputs.nodes(range(graph.outputs.n_own))))
        return transition

    def end(self) -> list[Feed]:
        """The pass ends; what that feeds."""
        remaining = [(event, value) for event in self.trace.events[self._reached :] for value in event.values]
        return [feed for event, value in remaining if (feed := self._feed_from_held(event, value))]

    def missing(self) -> list[str]:
        """The sites of kept values that no graph holds."""
        leaves = [value.leaf for event in self.trace.events for value in event.values]
        missing = (leaf for leaf in leaves if leaf.tap(self._listener) is not None and leaf not in self._fed)
        return list(dict.fromkeys(leaf.site.name for leaf in missing))

    def _align(self, graph: CapturedGraph, inputs: Sequence[Any], links: Links) -> Alignment:
        input_ids = [self.trace.ids.find(value) for value in inputs]
        for position, (number, output) in links.items():
            input_ids[position] = self._returned_ids[number][output]
        return Alignment(graph.nodes, input_ids, self.trace, self._reached, self._modules)

    def _holder(self, aligned: Alignment, value: TraceValue, index: int) -> fx.Node | None:
        holder = aligned.holder(value, index)
        return None if holder in self._unused_draws else holder

    def _closed(self, aligned: Alignment) -> Iterable[int]:
        """The composites that the graph holds as one node, though something inside of them is kept."""
        for index in aligned.ops:
            inside = self.trace.inside_of(index)
            if any(value.leaf.tap(self._listener) is not None for event in inside for value in event.values):
                yield index

    def _plan_event(
        self, graph: CapturedGraph, aligned: Alignment, index: int, transition: GraphTransition, *, is_early: bool
    ) -> None:
        event = self.trace.events[index]
        for value in event.values:
            tap = value.leaf.tap(self._listener)
            if tap is None or value.leaf in self._fed:
                continue
            if is_early and not event.is_op and (feed := self._feed_from_held(event, value)):
                transition.early_feeds.append((True, feed))
                continue
            if event.is_op and index not in aligned.ops and not self.trace.inside_of(index):
                continue
            holder = self._holder(aligned, value, index)
            if holder is not None:
                output = self._output(graph, transition, (holder, aligned.last_node(index)), tap, value)
                self._fed.add(value.leaf)
                feed = _with_parents(tap, event), output
                transition.early_feeds.append((False, feed)) if is_early else transition.feeds.append(feed)

    def _feed_from_held(self, event: TraceEvent, value: TraceValue) -> Feed | None:
        """The feed of a value that an output of the graph before holds."""
        output = self._step.held.get(value.leaf) if self._step is not None else None
        tap = value.leaf.tap(self._listener)
        if tap is None or output is None or value.leaf in self._fed:
            return None
        self._fed.add(value.leaf)
        return _with_parents(tap, event), output

    def _output(
        self,
        graph: CapturedGraph,
        transition: GraphTransition,
        place: tuple[fx.Node, fx.Node | None],
        tap: PlannedTap[Any],
        value: TraceValue,
        *,
        unshared: bool = False,
    ) -> int:
        """The output of the graph that holds a value; ``place`` is its node, and the node after which it is meant."""
        output = graph.outputs.add(*place, attached=tap.attached, unshared=unshared)
        is_detached = value.requires_grad and not tap.attached and output >= graph.outputs.n_own
        if is_detached and output not in transition.differentiable:
            transition.differentiable.append(output)
        return output

    def _check_unmatched(self, aligned: Alignment) -> None:
        """Refuse a graph that computes what the trace does not hold, if that may have to be kept."""
        for node in aligned.unmatched:
            facts = facts_of(node)
            assert facts is not None
            frames = tuple(tracked.frame for tracked in aligned.modules_of(node))
            name = f"{frames[-1].module_address if frames else ''}/{facts.segment}"
            if self._listener.may_keep(Site(name, "op", facts.layer_type, facts.func_name, frames)):
                raise UnsupportedModelError(
                    f"the compiled model computes {name!r} where the model itself, run without compiled code, does "
                    "not, so its records could be named wrong; record the model that was compiled with "
                    "engine='eager' (model._orig_mod), or select other sites"
                )


def _with_parents(tap: PlannedTap[Any], event: TraceEvent) -> Callable[[Any, Any], None]:
    return tap if event.parents is None else partial(_feed_with_parents, tap, event.parents)


def _feed_with_parents(tap: PlannedTap[Any], parents: tuple[str, ...], run: Any, value: Any) -> None:
    run.parents = parents
    tap(run, value)
