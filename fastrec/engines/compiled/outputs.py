"""More outputs for a compiled graph: values as they were at one place in it, without a change to what it returned.

    outputs = ExtraOutputs(graph)
    position = outputs.add(value, after, attached=False)    # the position of the output that holds it
    outputs.finish()

A value that the graph writes to later is cloned right after its place; so is one whose memory somebody else gets too,
as an input or an output. A value through which no gradient has to flow is detached in the graph, else it would take
part in the user's backward pass. ``GradientPaths`` sees to it that the attached ones do not give gradients to what they
do not reach: a compiled backward pass gives one to every input, zeros included.
"""

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
    """Adds outputs behind those that a graph has.

    ``n_own`` counts the graph's own outputs; ``attached`` are the positions of those through which gradients flow;
    ``copies`` are nodes whose memory nothing writes to, although their examples share it with what is written to.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._output = next(node for node in graph.nodes if node.op == "output")
        self._outputs: list[Any] = list(self._output.args[0])
        self.n_own = len(self._outputs)
        self.is_finished = False
        self.attached: list[int] = []
        self.copies: set[fx.Node] = set()
        self._order = {node: index for index, node in enumerate(graph.nodes)}
        self._shared = {storage for node in self._nodes_of_others() for storage in storages_of(example(node))}
        self._writers: list[fx.Node] = [node for node in graph.nodes if writes(node)]
        self._positions: dict[Any, int] = {}  # of the outputs that were added

    def add(self, value: fx.Node, after: fx.Node | None, *, attached: bool, unshared: bool = False) -> int:
        """The position of an output that holds a value as it was after a node (None: when the graph began).

        Arguments:
            attached: gradients have to flow through it; otherwise it takes no part in them.
            unshared: nobody else may have it, because it is read only later.
        """
        place = max(self._order.get(value, 0), self._order[after] if after is not None else 0)
        writer = self._next_writer(value, place)
        if value in self._outputs[: self.n_own] and writer is None and not unshared:
            return self._outputs.index(value)  # whether it is attached is the model's own choice
        key = value, writer, attached
        if key not in self._positions:
            if self.is_finished:
                raise UnsupportedModelError(
                    "one piece of compiled code runs at several places of the model, and other values are kept at "
                    "some than at others; keep the same at all of them, or record the model that was compiled with "
                    "engine='eager'"
                )
            self._positions[key] = len(self._outputs)
            if attached and example(value).requires_grad:
                self.attached.append(len(self._outputs))
            self._outputs.append(self._held(value, after, is_written=writer is not None, attached=attached))
        return self._positions[key]

    def finish(self) -> None:
        """Let the graph return them."""
        self.is_finished = True
        self._output.args = (tuple(self._outputs),)
        self._graph.lint()

    def nodes(self, positions: Iterable[int]) -> list[Any]:
        """The nodes of some outputs."""
        return [self._outputs[position] for position in positions]

    def _held(self, value: fx.Node, after: fx.Node | None, *, is_written: bool, attached: bool) -> fx.Node:
        """A node that holds a value until the graph returns it."""
        storages = storages_of(example(value))
        is_shared = not self._shared.isdisjoint(storages)
        self._shared.update(storages)
        source = value
        while source not in self._order:  # was made to be kept, right after the node that it takes an item of
            source = source.args[0]  # type: ignore[assignment]
        place = value if after is None or self._order.get(after, 0) <= self._order[source] else after
        node = value
        if not attached and example(value).requires_grad:
            node = place = self._insert("detach", node, place)
        if is_written or is_shared:
            node = self._insert("clone", node, place)
            self.copies.add(node)
        return node

    def _insert(self, method: str, value: fx.Node, place: fx.Node) -> fx.Node:
        """A call of a method after a place."""
        if place.op == "placeholder":  # they all come before everything else
            place = [node for node in self._graph.nodes if node.op == "placeholder"][-1]
        with self._graph.inserting_after(place):
            node = self._graph.call_method(method, (value,))
        node.meta["example_value"] = example(value)
        node.meta[ADDED] = True
        return node

    def _nodes_of_others(self) -> Iterator[fx.Node]:
        """The nodes whose memory somebody else has too."""
        yield from (node for node in self._graph.nodes if node.op in ("placeholder", "get_attr"))
        yield from (node for node in self._outputs if isinstance(node, fx.Node))

    def _next_writer(self, value: fx.Node, place: int) -> fx.Node | None:
        """The first node after a place that may write to the memory of a value."""
        storages = storages_of(example(value))
        for node in self._writers:
            if self._order[node] > place:
                for argument in node.all_input_nodes:
                    if not storages.isdisjoint(storages_of(example(argument))):
                        return node
        return None


def writes(node: fx.Node) -> bool:
    """Whether a node may write to what it is given."""
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


# --- Gradients ------------------------------------------------------------------------------------------------------

Hook = Callable[[tuple[Any, ...], tuple[Any, ...]], Any]


class GradientPaths:
    """From which outputs of a graph gradients flow to which of its inputs.

    The graph's ``own`` outputs are taken together, as they are without a recorder; ``kept`` ones are given with their
    positions. Nothing writes to ``copies``.
    """

    def __init__(
        self, nodes: Iterable[fx.Node], own: Iterable[Any], kept: Mapping[int, fx.Node], copies: Set[fx.Node]
    ) -> None:
        inputs_of = _Inputs(nodes, copies)
        self._own_inputs = frozenset().union(*map(inputs_of, own))
        self._kept_inputs = {position: inputs_of(node) for position, node in kept.items()}
        self._differ = any(inputs != self._own_inputs for inputs in self._kept_inputs.values())
        self._hook: Hook | None = None

    def watch(self, arguments: Sequence[Any], out: Sequence[Any]) -> None:
        """The graph has run: let its backward pass give a gradient only where one flows to."""
        if not self._differ:
            return
        node = next((out[position].grad_fn for position in self._kept_inputs if out[position].requires_grad), None)
        # Any other backward pass has nodes of its own for each op, so that autograd itself knows where gradients flow.
        if node is None or node.name() != "CompiledFunctionBackward":
            return
        if self._hook is None:
            self._hook = self._make_hook(node, arguments, out)
        node.register_hook(self._hook)

    def _make_hook(self, node: Any, arguments: Sequence[Any], out: Sequence[Any]) -> Hook:
        """The hook of all backward passes of the graph, which have their gradients in the same order."""
        edges = {get_gradient_edge(value)[:2]: i for i, value in enumerate(arguments) if _takes_gradient(value)}
        positions = [edges.get((function, number)) for function, number in node.next_functions]
        kept_inputs = {
            out[position].output_nr: inputs
            for position, inputs in self._kept_inputs.items()
            if out[position].grad_fn is node
        }
        own_inputs = self._own_inputs

        def drop_zeros(gradients: tuple[Any, ...], arrived: tuple[Any, ...]) -> tuple[Any, ...]:
            reached = [kept_inputs.get(i, own_inputs) for i, gradient in enumerate(arrived) if gradient is not None]
            inputs = frozenset().union(*reached)
            return tuple(
                gradient if position is None or position in inputs else None
                for gradient, position in zip(gradients, positions, strict=True)
            )

        return drop_zeros


class _Inputs:
    """The positions of a graph's inputs to which gradients flow from a value."""

    def __init__(self, nodes: Iterable[fx.Node], copies: Set[fx.Node]) -> None:
        self._copies = copies
        self._inputs: dict[fx.Node, frozenset[int]] = {}
        self._written: dict[int, frozenset[int]] = {}  # by the memory that was written to
        count = 0
        for node in nodes:
            if node.op == "placeholder":
                self._inputs[node], count = frozenset([count]), count + 1
                continue
            inputs = frozenset().union(*map(self, node.all_input_nodes))
            self._inputs[node] = inputs if _carries_gradient(node) else frozenset()
            if writes(node):
                for argument in node.all_input_nodes:
                    for storage in storages_of(example(argument)):
                        self._written[storage] = self._written.get(storage, frozenset()) | inputs

    def __call__(self, node: Any) -> frozenset[int]:
        if not isinstance(node, fx.Node) or not _carries_gradient(node):
            return frozenset()
        inputs = self._inputs.get(node, frozenset())
        if node in self._copies:
            return inputs
        return inputs.union(*(self._written.get(storage, frozenset()) for storage in storages_of(example(node))))


def _carries_gradient(node: fx.Node) -> bool:
    return any(value.requires_grad for _, value in leaves(example(node)))


def _takes_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
