"""Graphs that dynamo captured, and what is done to them before the user's backend compiles them.

graph = CapturedGraph(module, inputs)     # what dynamo hands to a backend
graph.expand(composites)                  # composites inside of which something is kept become the ops they are made of
graph.outputs.add(node, after, ...)       # kept values become outputs
graph.finish(module)                      # the graph returns them
graph.compiled = compile_graph(module, inputs)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from types import MethodWrapperType
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from fastrec._torch.dynamo import without_disable
from fastrec._torch.modes import unseen_by_dynamo
from fastrec._torch.trees import leaves
from fastrec.engines.compiled.alignment import example
from fastrec.engines.compiled.outputs import ExtraOutputs, GradientPaths, writes
from fastrec.ops.facts import opened

_RECORDED_BY = "fastrec_recorded"
"""In the meta of a graph: the last CapturedGraph for which its outputs hold values."""


class CapturedGraph:
    """One graph, with what it was captured from.

    ``gradient_paths`` is there if kept values are attached, and has to see each run; None: it is enough to run
    ``compiled``.
    """

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        self._graph = module.graph
        self.inputs = list(inputs)
        self.nodes = list(self._graph.nodes)
        self.outputs = ExtraOutputs(self._graph)
        self.compiled: Callable[..., Sequence[Any]] = _not_compiled
        self.gradient_paths: GradientPaths | None = None
        # Also for the recorders around this one:
        self._attached: dict[int, None] = {}
        self._copies: set[fx.Node] = set()

    def expand(self, composites: Iterable[fx.Node]) -> bool:
        """Put the ops that composites are made of in their place; whether that could be done with any of them."""
        is_expanded = any([expand(node) for node in composites])
        if is_expanded:
            self.nodes = list(self._graph.nodes)
            self.outputs = ExtraOutputs(self._graph)
        return is_expanded

    def unused_draws(self, drawing: Iterable[fx.Node]) -> set[fx.Node]:
        """What must not be kept: what comes from random numbers that nobody uses, and that compiled code does not draw.

        As an output it would be used, and all numbers drawn later would be others than without a recorder.
        """
        unused = set(drawing)
        if unused:
            unused -= self._used()
        for node in self.nodes if unused else ():
            if not unused.isdisjoint(node.all_input_nodes):
                unused.add(node)
        return unused

    def _used(self) -> set[fx.Node]:
        """The nodes that the graph's own outputs need."""
        own = set(self.outputs.nodes(range(self.outputs.n_own)))
        used: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if node in own or node in used or writes(node):
                used.update((node, *node.all_input_nodes))
        return used

    def finish(self, module: fx.GraphModule) -> None:
        """Nothing more will be kept: let the graph return what is."""
        outputs = self.outputs
        outputs.finish()
        module.recompile()
        around: CapturedGraph | None = module.meta.get(_RECORDED_BY)
        module.meta[_RECORDED_BY] = self
        self._attached = dict.fromkeys(outputs.attached)
        self._copies = set(outputs.copies)
        if around is not None:  # another recorder's, which can't know what this one adds
            self._attached |= around._attached
            self._copies |= around._copies
            around.gradient_paths = None
        if self._attached:
            own = outputs.nodes(position for position in range(outputs.n_own) if position not in self._attached)
            kept = dict(zip(self._attached, outputs.nodes(self._attached), strict=True))
            self.gradient_paths = GradientPaths(self._graph.nodes, own, kept, self._copies)

    def compile(self, compile_graph: Callable[..., Any], module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        """Have the user's backend compile it."""
        # Dynamo switches itself off for what a backend of ours returns, so here that need not be done again.
        self.compiled = without_disable(compile_graph(module, inputs))

    def run(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """All its outputs, with an eye on gradients."""
        out = self.compiled(*arguments)
        if self.gradient_paths is not None:
            self.gradient_paths.watch(arguments, out)
        return out

    def forget(self) -> None:
        """Let go of the compiled code; torch holds this object for as long as the code that it was captured from."""
        self.compiled = _not_compiled


def _not_compiled(*arguments: Any) -> Any:
    raise AssertionError("no recorder runs this graph any more")


# --- Composites -----------------------------------------------------------------------------------------------------


def expand(node: fx.Node) -> bool:
    """Put the ops that a composite is made of in its place.

    False where that can't be: sizes are unknown, or it reads tensors that the graph does not hold as nodes.
    """
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), example)
    inputs = [value for _, value in leaves((args, kwargs))]
    if not inputs or any(not isinstance(size, int) for value in inputs for size in value.shape):
        return False
    writer = _OpWriter(node)
    for input_node in node.all_input_nodes:
        writer.hold(example(input_node), input_node)
    with inputs[0].fake_mode, writer:  # type: ignore[attr-defined]
        out = opened(node.target)(*args, **kwargs)
    if writer.is_complete and _replace(node, writer, out):
        return True
    for new_node in reversed(writer.new_nodes):
        new_node.graph.erase_node(new_node)
    return False


@unseen_by_dynamo
class _OpWriter(TorchFunctionMode):
    """Writes the ops that run, over the graph's fake tensors, into the graph before a node.

    ``is_complete``: all that they read is known as a node.
    """

    def __init__(self, place: fx.Node) -> None:
        super().__init__()
        self.is_complete = True
        self.new_nodes: list[fx.Node] = []
        self._place = place
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Any] = []  # otherwise another tensor could get the id of one that is gone

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if next(leaves(out), None) is None and getattr(func, "__name__", "") != "__setitem__":
            return out
        target, arguments = func, args
        if isinstance(func, MethodWrapperType):  # a property
            target, arguments = getattr, (args[0], func.__self__.__name__)  # type: ignore[attr-defined]
        self.hold(out, self._add(target, self._as_nodes(arguments), self._as_nodes(kwargs), out))
        return out

    def hold(self, value: Any, node: fx.Node) -> None:
        """Remember which node a tensor, or those in a tuple, came from."""
        self._alive.append(value)
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node
        for index, item in enumerate(value if isinstance(value, tuple | list) else ()):
            if isinstance(item, Tensor) and node.target is not operator.getitem:
                self._nodes[id(item)] = self._add(operator.getitem, (node, index), {}, item)

    def node_of(self, value: Any) -> fx.Node | None:
        """The node of a tensor."""
        return self._nodes.get(id(value)) if isinstance(value, Tensor) else None

    def _add(self, target: Any, args: Any, kwargs: Any, out: Any) -> fx.Node:
        with self._place.graph.inserting_before(self._place):
            node = self._place.graph.call_function(target, args, kwargs)
        node.meta = {**self._place.meta, "example_value": out}
        self.new_nodes.append(node)
        return node

    def _as_nodes(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            node = self.node_of(value)
            self.is_complete &= node is not None
            return node
        if isinstance(value, tuple | list):
            return type(value)([self._as_nodes(item) for item in value])
        if isinstance(value, dict):
            return {key: self._as_nodes(item) for key, item in value.items()}
        self.is_complete &= not isinstance(value, torch.SymInt | torch.SymFloat)
        return value


def _replace(node: fx.Node, writer: _OpWriter, out: Any) -> bool:
    """Let the users of a composite use what its ops computed."""
    values: dict[fx.Node, Any] = {node: out}
    if not isinstance(out, Tensor):
        items: dict[Any, Any] = dict(enumerate(out)) if isinstance(out, tuple | list) else {}
        values = {user: items.get(user.args[1]) if user.target is operator.getitem else None for user in node.users}
    new_nodes = {user: writer.node_of(value) for user, value in values.items()}
    if None in new_nodes.values():
        return False
    for user, new_node in new_nodes.items():
        assert new_node is not None
        user.replace_all_uses_with(new_node)
        if user is not node:
            node.graph.erase_node(user)
    node.graph.erase_node(node)
    return True
