"""More outputs for a compiled graph: values as they were at one place in it, without a change to what it returned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.graph import get_gradient_edge

from fastrec._errors import UnsupportedModelError
from fastrec._torch.trees import leaves
from fastrec.engines.compiled.alignment import ADDED, example, facts_of
from fastrec.ops.facts import reads_inplace_flag


class ExtraOutputs:
    """Adds outputs behind those that a graph has."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._output = next(node for node in graph.nodes if node.op == "output")
        self._outputs: list[Any] = list(self._output.args[0])
        self.n_own = len(self._outputs)
        self._order = {node: place for place, node in enumerate(graph.nodes)}
        self._shared = {storage for node in self._fixed() for storage in storages_of(example(node))}
        self.done = False
        self.attached: list[int] = []  # the positions of those through which gradients flow
        self.copies: set[fx.Node] = set()  # into which nothing writes, though their examples say so
        self._known: dict[Any, int] = {}
        self._writers = [node for node in graph.nodes if writes(node)]

    def add(self, value: fx.Node, after: fx.Node | None, *, attached: bool, alone: bool = False) -> int:
        """The position of an output that holds a value as it was after a node (None: when the graph began).

        Arguments:
            attached: gradients have to flow through it; else it takes no part in them.
            alone: nobody else may have it, because it is read only later.
        """
        place = max(self._order.get(value, 0), self._order[after] if after is not None else 0)
        written = self._written_later(value, place)
        if value in self._outputs[: self.n_own] and not written and not alone:
            return self._outputs.index(value)  # whether attached or not is the model's own choice
        key = value, self._next_writer(value, place), attached
        if key not in self._known:
            if self.done:
                raise UnsupportedModelError(
                    "one piece of compiled code runs at several places of the model, and other values are kept at "
                    "some than at others; keep the same at all of them, or record the model that was compiled with "
                    "engine='eager'"
                )
            self._known[key] = len(self._outputs)
            if attached and example(value).requires_grad:
                self.attached.append(len(self._outputs))
            self._outputs.append(self._taken(value, after, written=written, attached=attached))
        return self._known[key]

    def finish(self) -> None:
        """Let the graph return them."""
        self.done = True
        self._output.args = (tuple(self._outputs),)
        self._graph.lint()

    def nodes(self, positions: Iterable[int]) -> list[Any]:
        """The nodes of some outputs."""
        return [self._outputs[position] for position in positions]

    def _taken(self, value: fx.Node, after: fx.Node | None, *, written: bool, attached: bool) -> fx.Node:
        shared = not self._shared.isdisjoint(storages_of(example(value)))
        self._shared.update(storages_of(example(value)))
        place = value if after is None or self._order.get(after, 0) <= self._order.get(value, 0) else after
        taken = value
        if not attached and example(value).requires_grad:
            taken = self._then("detach", taken, place)
            place = taken
        if written or shared:
            taken = self._then("clone", taken, place)
            self.copies.add(taken)
        return taken

    def _then(self, method: str, value: fx.Node, place: fx.Node) -> fx.Node:
        if place.op == "placeholder":  # they all stand before everything else
            place = [node for node in self._graph.nodes if node.op == "placeholder"][-1]
        with self._graph.inserting_after(place):
            node = self._graph.call_method(method, (value,))
        node.meta["example_value"] = example(value)
        node.meta[ADDED] = True
        return node

    def _fixed(self) -> Iterator[fx.Node]:
        """The nodes whose memory somebody else has too."""
        yield from (node for node in self._graph.nodes if node.op in ("placeholder", "get_attr"))
        yield from (node for node in self._outputs if isinstance(node, fx.Node))

    def _written_later(self, value: fx.Node, place: int) -> bool:
        return self._next_writer(value, place) is not None

    def _next_writer(self, value: fx.Node, place: int) -> Any:
        """The first node after a place that may write into the memory of a value."""
        storages = storages_of(example(value))
        for node in self._writers:
            if self._order[node] > place:
                for given in node.all_input_nodes:
                    if not storages.isdisjoint(storages_of(example(given))):
                        return node
        return None


def writes(node: fx.Node) -> bool:
    """Whether a node may write into what it is given."""
    if node.op not in ("call_function", "call_method"):
        return node.op == "call_module"
    facts = facts_of(node)
    if facts is None:
        return False
    return reads_inplace_flag(facts, node.args, node.kwargs)


def storages_of(value: Any) -> set[int]:
    """The memory of all tensors in a value, as it was traced."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            return set()
        return {value.untyped_storage()._cdata}
    if isinstance(value, tuple | list):
        return {storage for item in value for storage in storages_of(item)}
    return set()


Hook = Callable[[tuple[Any, ...], tuple[Any, ...]], Any]


class GradientPaths:
    """From which outputs of a graph gradients flow to which of its inputs.

    The graph's ``own`` outputs are taken together, as they are without a recorder; ``kept`` ones are given with their
    positions. Nothing writes into ``copies``.
    """

    def __init__(
        self, nodes: Iterable[fx.Node], own: Iterable[Any], kept: Mapping[int, fx.Node], copies: Set[fx.Node]
    ) -> None:
        used = _Uses(nodes, copies)
        self._own = frozenset().union(*map(used, own))
        self._kept = {position: used(node) for position, node in kept.items()}
        self._hook: Hook | None = None
        self._differ = any(inputs != self._own for inputs in self._kept.values())

    def watch(self, given: Sequence[Any], out: Sequence[Any]) -> None:
        """The graph has run: let its backward pass give a gradient only where one flows to."""
        if not self._differ:
            return
        node = next((out[position].grad_fn for position in self._kept if out[position].requires_grad), None)
        # Any other backward pass has nodes of its own for each op, and autograd itself knows where gradients flow.
        if node is None or node.name() != "CompiledFunctionBackward":
            return
        if self._hook is None:
            self._hook = self._make_hook(node, given, out)
        node.register_hook(self._hook)

    def _make_hook(self, node: Any, given: Sequence[Any], out: Sequence[Any]) -> Hook:
        """The hook of all backward passes of the graph, which have their gradients in the same order."""
        edges = {get_gradient_edge(each)[:2]: i for i, each in enumerate(given) if _takes_gradient(each)}
        inputs = [edges.get((function, number)) for function, number in node.next_functions]
        kept = {out[position].output_nr: used for position, used in self._kept.items() if out[position].grad_fn is node}
        own = self._own

        def drop(gradients: tuple[Any, ...], arrived: tuple[Any, ...]) -> tuple[Any, ...]:
            reached = [kept.get(number, own) for number, gradient in enumerate(arrived) if gradient is not None]
            flows = frozenset().union(*reached)
            return tuple(
                gradient if position is None or position in flows else None
                for gradient, position in zip(gradients, inputs, strict=True)
            )

        return drop


class _Uses:
    """The positions of a graph's inputs to which gradients flow from a value."""

    def __init__(self, nodes: Iterable[fx.Node], copies: Set[fx.Node]) -> None:
        self._copies = copies
        self._uses: dict[fx.Node, frozenset[int]] = {}
        self._written: dict[int, frozenset[int]] = {}  # by the memory that was written to
        inputs = 0
        for node in nodes:
            if node.op == "placeholder":
                self._uses[node], inputs = frozenset([inputs]), inputs + 1
                continue
            uses = frozenset().union(*map(self, node.all_input_nodes))
            self._uses[node] = uses if _carries_gradient(node) else frozenset()
            if writes(node):
                for each in node.all_input_nodes:
                    for storage in storages_of(example(each)):
                        self._written[storage] = self._written.get(storage, frozenset()) | uses

    def __call__(self, node: Any) -> frozenset[int]:
        if not isinstance(node, fx.Node) or not _carries_gradient(node):
            return frozenset()
        uses = self._uses.get(node, frozenset())
        if node in self._copies:
            return uses
        return uses.union(*(self._written.get(storage, frozenset()) for storage in storages_of(example(node))))


def _carries_gradient(node: fx.Node) -> bool:
    return any(value.requires_grad for _, value in leaves(example(node)))


def _takes_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
