"""Compiled graphs that hand over kept values, and the ways that passes take through them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MethodWrapperType
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from fastrec._errors import UnsupportedModelError
from fastrec._torch.modes import unseen_by_dynamo
from fastrec._torch.trees import leaves
from fastrec.engines._protocol import MakePassBatch, PassBatch, PlannedTap, PlanningListener
from fastrec.engines.compiled.alignment import Alignment, example, facts_of
from fastrec.engines.compiled.outputs import ExtraOutputs, GradientPaths, writes
from fastrec.engines.compiled.reference_run import ReferenceTrace, TraceEvent, TraceLeaf, TraceValue
from fastrec.engines.eager.modules import TrackedModule
from fastrec.events.sites import Site
from fastrec.ops.facts import opened

Feed = tuple[Callable[[Any, Any], None], int]
"""Who is fed, and with which output of the graph."""

Links = Mapping[int, tuple[int, int]]
"""Inputs of a graph that are outputs of others: of the how manieth graph of the pass, and which."""

RECORDED = "fastrec_recorded"
"""In the meta of a graph: for whom its outputs hold values, the last one."""


class CapturedGraph:
    """One graph that dynamo captured, with what it was captured from."""

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        self._graph = module.graph
        self.inputs = list(inputs)
        self._look()
        self.compiled: Any = None  # by the user's backend
        self._attached: dict[int, None] = {}  # the positions of what is attached, also for recorders around this one
        self._copies: set[fx.Node] = set()
        self.paths: GradientPaths | None = None

    def _look(self) -> None:
        self.nodes = list(self._graph.nodes)
        self.outputs = ExtraOutputs(self._graph)

    def finish(self, module: fx.GraphModule) -> None:
        """Nothing more is kept: let the graph return what is."""
        outputs = self.outputs
        outputs.finish()
        module.recompile()
        around: CapturedGraph | None = module.meta.get(RECORDED)
        module.meta[RECORDED] = self
        self._attached = dict.fromkeys(outputs.attached)
        self._copies = set(outputs.copies)
        if around is not None:  # of another recorder, which can't know what this one adds
            self._attached |= around._attached
            self._copies |= around._copies
            around.paths = None
        if self._attached:
            own = outputs.nodes(position for position in range(outputs.n_own) if position not in self._attached)
            kept = dict(zip(self._attached, outputs.nodes(self._attached), strict=True))
            self.paths = GradientPaths(self._graph.nodes, own, kept, self._copies)

    def run(self, given: Sequence[Any]) -> Sequence[Any]:
        """All its outputs; where it has no ``paths``, what was compiled can be run as well."""
        out: Sequence[Any] = self.compiled(*given)
        if self.paths is not None:
            self.paths.watch(given, out)
        return out

    def asleep(self, drawing: Iterable[fx.Node]) -> set[fx.Node]:
        """What must not be kept: it would make numbers be drawn that are not, because nobody uses them, else."""
        dead = set(drawing) - self._live() if drawing else set()
        for node in self.nodes if dead else ():
            if not dead.isdisjoint(node.all_input_nodes):
                dead.add(node)
        return dead

    def _live(self) -> set[fx.Node]:
        own = set(self.outputs.nodes(range(self.outputs.n_own)))
        live: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if node in own or node in live or writes(node):
                live.update((node, *node.all_input_nodes))
        return live

    def expand(self, composites: Iterable[fx.Node]) -> bool:
        """Take composites apart; whether that could be done with any of them."""
        done = [expand(node) for node in composites]
        if any(done):
            self._look()
        return any(done)


class GraphStep:
    """Where a pass is after a graph has run, or before the first one.

    ``following`` holds what is fed when a certain graph runs next, and ``end`` what is fed if the pass ends here; None:
    no pass that ended here has been learned. ``held`` are the outputs that such feeds take.
    """

    def __init__(self) -> None:
        self.following: dict[CapturedGraph, GraphTransition] = {}
        self.end: list[Feed] | None = None
        self.held: dict[TraceLeaf, int] = {}


class GraphTransition:
    """What a run of a graph feeds.

    ``early`` comes before the graph's first op, and part of it from outputs of the graph before (True). ``marked`` are
    outputs that would carry gradients in an eager pass.
    """

    def __init__(self, links: Links) -> None:
        self.links = links
        self.early: list[tuple[bool, Feed]] = []
        self.feeds: list[Feed] = []
        self.marked: list[int] = []
        self.step = GraphStep()
        self.batch: PassBatch | None = None  # all that a pass through this edge alone feeds, in one go
        self.batched: list[int] = []
        self.added: slice | None = None  # where those outputs are, if they are the added ones in their order
        self.batch_asked = False

    def make_batch(self, n_own: int, make: MakePassBatch) -> None:
        """Let passes that go through this edge alone feed in one go, where only the recorder has most values."""
        self.batch_asked = True
        feeds = [*(feed for _, feed in self.early), *self.feeds, *(self.step.end or ())]
        positions = [position for _, position in feeds]
        added = [position for position in positions if position >= n_own]
        if added and len(set(added)) == len(added):
            self.batch = make([tap for tap, _ in feeds], None)
            self.batched = positions
            if positions == [*range(n_own, n_own + len(positions))]:
                self.added = slice(n_own, n_own + len(positions))

    def feeds_as(self, other: GraphTransition) -> bool:
        """Whether it feeds the same as another one."""
        return (self.early, self.feeds) == (other.early, other.feeds)


class GraphRoute:
    """How far a pass has come in its lesson, graph by graph."""

    def __init__(self, lesson: ReferenceTrace, listener: PlanningListener, known: Mapping[int, TrackedModule]) -> None:
        self.lesson = lesson
        self.reached = 0
        self._listener = listener
        self._known = known
        self._fed: set[TraceLeaf] = set()
        self._asleep: set[fx.Node] = set()
        self._step: GraphStep | None = None
        self._returned: list[list[int | None]] = []  # which tensors of the lesson the graphs returned

    @property
    def gone(self) -> int:
        """Through how many graphs."""
        return len(self._returned)

    def go(self, graph: CapturedGraph, given: Sequence[Any], links: Links) -> GraphTransition:
        """Go on through a graph that is given some inputs; what its run feeds."""
        aligned = self._align(graph, given, links)
        while not graph.outputs.done and graph.expand(aligned.ops[i] for i in self._closed(aligned)):
            aligned = self._align(graph, given, links)
        self._check(aligned)
        self._asleep = graph.asleep([node for i, node in aligned.ops.items() if self.lesson.events[i].draws])
        edge = GraphTransition(links)
        first = min(aligned.ops, default=self.reached)
        for index in range(self.reached, aligned.end):
            self._plan(graph, aligned, index, edge, early=index < first)
        last = aligned.after(aligned.end)
        goes_on = any(event.is_op for event in self.lesson.events[aligned.end :])
        for index in range(aligned.end, len(self.lesson.events)):
            event = self.lesson.events[index]
            for value in () if event.is_op else event.values:
                tap, holder = value.leaf.tap(self._listener), self._holder(aligned, value, index)
                if tap is not None and holder is not None:
                    edge.step.held[value.leaf] = self._output(graph, edge, (holder, last), tap, value, alone=goes_on)
        self.reached = aligned.end
        self._step = edge.step
        self._returned.append(aligned.tokens(graph.outputs.nodes(range(graph.outputs.n_own))))
        return edge

    def _align(self, graph: CapturedGraph, given: Sequence[Any], links: Links) -> Alignment:
        tokens = [self.lesson.tokens.known(each) for each in given]
        for position, (number, output) in links.items():
            tokens[position] = self._returned[number][output]
        return Alignment(graph.nodes, tokens, self.lesson, self.reached, self._known)

    def _holder(self, aligned: Alignment, value: TraceValue, index: int) -> fx.Node | None:
        holder = aligned.holder(value, index)
        return None if holder in self._asleep else holder

    def _closed(self, aligned: Alignment) -> list[int]:
        """The composites that the graph holds as one node, though something inside of them is kept."""
        found = []
        for index in aligned.ops:
            inside = self.lesson.inside_of(index)
            if any(value.leaf.tap(self._listener) is not None for event in inside for value in event.values):
                found.append(index)
        return found

    def end(self) -> list[Feed]:
        """The pass ends; what is fed."""
        left = [(event, value) for event in self.lesson.events[self.reached :] for value in event.values]
        return [feed for event, value in left if (feed := self._from_before(event, value))]

    def missing(self) -> list[str]:
        """The sites of kept values that no graph holds."""
        found: dict[str, None] = {}
        for event in self.lesson.events:
            for value in event.values:
                if value.leaf.tap(self._listener) is not None and value.leaf not in self._fed:
                    found[value.leaf.site.name] = None
        return list(found)

    def _plan(
        self, graph: CapturedGraph, aligned: Alignment, index: int, edge: GraphTransition, *, early: bool
    ) -> None:
        event = self.lesson.events[index]
        for value in event.values:
            tap = value.leaf.tap(self._listener)
            if tap is None or value.leaf in self._fed:
                continue
            if early and not event.is_op and (feed := self._from_before(event, value)):
                edge.early.append((True, feed))
                continue
            if event.is_op and index not in aligned.ops and not self.lesson.inside_of(index):
                continue
            holder = self._holder(aligned, value, index)
            if holder is not None:
                output = self._output(graph, edge, (holder, aligned.after(index)), tap, value)
                self._fed.add(value.leaf)
                feed = _with_parents(tap, event), output
                edge.early.append((False, feed)) if early else edge.feeds.append(feed)

    def _from_before(self, event: TraceEvent, value: TraceValue) -> Feed | None:
        """The feed of a value that an output of the graph before holds."""
        held = self._step.held.get(value.leaf) if self._step is not None else None
        tap = value.leaf.tap(self._listener)
        if tap is None or held is None or value.leaf in self._fed:
            return None
        self._fed.add(value.leaf)
        return _with_parents(tap, event), held

    def _output(
        self,
        graph: CapturedGraph,
        edge: GraphTransition,
        where: tuple[fx.Node, fx.Node | None],
        tap: PlannedTap,
        value: TraceValue,
        *,
        alone: bool = False,
    ) -> int:
        output = graph.outputs.add(*where, attached=tap.attached, alone=alone)
        if value.requires_grad and not tap.attached and output >= graph.outputs.n_own and output not in edge.marked:
            edge.marked.append(output)
        return output

    def _check(self, aligned: Alignment) -> None:
        """Refuse a graph that computes what the lesson does not tell, where that may have to be kept."""
        for node in aligned.unmatched:
            facts = facts_of(node)
            assert facts is not None
            frames = tuple(known.frame for known in aligned.modules(node))
            name = f"{frames[-1].module_address if frames else ''}/{facts.segment}"
            if self._listener.may_keep(Site(name, "op", facts.layer_type, facts.func_name, frames)):
                raise UnsupportedModelError(
                    f"the compiled model computes {name!r} where the model itself, run without compiled code, does "
                    "not, so its records could be named wrong; record the model that was compiled with "
                    "engine='eager' (model._orig_mod), or select other sites"
                )


def _with_parents(tap: PlannedTap, event: TraceEvent) -> Callable[[Any, Any], None]:
    return tap if event.parents is None else partial(_feed, tap, event.parents)


def _feed(tap: PlannedTap, parents: tuple[str, ...], run: Any, value: Any) -> None:
    run.parents = parents
    tap(run, value)


def expand(node: fx.Node) -> bool:
    """Put the ops that a composite is made of in its place; False: not where sizes are unknown, or it holds others."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), example)
    given = [value for _, value in leaves((args, kwargs))]
    if not given or any(not isinstance(size, int) for value in given for size in value.shape):
        return False
    tracer = _Tracer(node)
    for each in node.all_input_nodes:
        tracer.hold(example(each), each)
    with given[0].fake_mode, tracer:  # type: ignore[attr-defined]
        out = opened(node.target)(*args, **kwargs)
    if tracer.complete and _replace(node, tracer, out):
        return True
    for made in reversed(tracer.made):
        made.graph.erase_node(made)
    return False


@unseen_by_dynamo
class _Tracer(TorchFunctionMode):
    """Writes down the ops that run."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        self.complete = True
        self._node = node
        self.made: list[fx.Node] = []
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Any] = []  # else another tensor could come to have the same id

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if next(leaves(out), None) is None and getattr(func, "__name__", "") != "__setitem__":
            return out
        target, given = func, args
        if isinstance(func, MethodWrapperType):  # a property
            target, given = getattr, (args[0], func.__self__.__name__)  # type: ignore[attr-defined]
        with self._node.graph.inserting_before(self._node):
            made = self._node.graph.call_function(target, self._mapped(given), self._mapped(kwargs))
        self.made.append(made)
        made.meta = {**self._node.meta, "example_value": out}
        self.hold(out, made)
        return out

    def hold(self, value: Any, node: fx.Node) -> None:
        """Remember which node a tensor, or those in a tuple, came from."""
        self._alive.append(value)
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node
        for index, item in enumerate(value if isinstance(value, tuple | list) else ()):
            if isinstance(item, Tensor) and node.target is not operator.getitem:
                with node.graph.inserting_before(self._node):
                    taken = node.graph.call_function(operator.getitem, (node, index))
                self.made.append(taken)
                taken.meta = {**self._node.meta, "example_value": item}
                self._nodes[id(item)] = taken

    def of(self, value: Tensor) -> fx.Node | None:
        """The node of a tensor."""
        return self._nodes.get(id(value))

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            node = self.of(value)
            self.complete &= node is not None
            return node
        if isinstance(value, tuple | list):
            return type(value)([self._mapped(item) for item in value])
        if isinstance(value, dict):
            return {key: self._mapped(item) for key, item in value.items()}
        self.complete &= not isinstance(value, torch.SymInt | torch.SymFloat)
        return value


def _replace(node: fx.Node, tracer: _Tracer, out: Any) -> bool:
    """Let the users of a composite use what its ops computed."""
    users: dict[fx.Node, Any] = {}
    for user in node.users:
        is_item = user.target is operator.getitem and isinstance(out, tuple | list)
        users[user] = out[user.args[1]] if is_item else None
    if isinstance(out, Tensor):
        users = {node: out}
    found = {user: tracer.of(value) if isinstance(value, Tensor) else None for user, value in users.items()}
    if None in found.values():
        return False
    for user, made in found.items():
        assert made is not None
        user.replace_all_uses_with(made)
        if user is not node:
            node.graph.erase_node(user)
    node.graph.erase_node(node)
    return True
