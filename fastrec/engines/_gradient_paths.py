"""Parameters to which no gradient flows get none, also where kept values are outputs of a compiled graph.

The backward pass of a compiled graph is one node of autograd, which gives every input a gradient, zeros where nothing
arrives; an optimizer tells zeros from none. Which inputs have to get none depends on the outputs through which a
backward pass comes: the kept ones alone, the model's own alone, or both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from torch import Tensor, fx
from torch.autograd.graph import get_gradient_edge

from fastrec._torch.trees import leaves
from fastrec.engines._aligned import example
from fastrec.engines._extra_outputs import storages_of, writes

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
