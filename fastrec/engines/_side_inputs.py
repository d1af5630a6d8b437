"""Parameters that only kept values use get no gradient from a loss that does not use these values.

The backward pass of a compiled graph gives every input a gradient, zeros where nothing arrives. Without a recorder an
input that no output uses gets none, and an optimizer tells zeros from none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastrec.engines._aligned import example
from fastrec.engines._extra_outputs import storages_of, writes


def side_inputs(nodes: Sequence[fx.Node], own: Iterable[Any], extra: Iterable[fx.Node]) -> list[int]:
    """The positions of inputs that extra outputs use, and none of the graph's own outputs does."""
    uses: dict[fx.Node, frozenset[int]] = {}
    written: dict[int, frozenset[int]] = {}
    inputs = 0
    for node in nodes:
        if node.op == "placeholder":
            uses[node], inputs = frozenset([inputs]), inputs + 1
            continue
        given = [uses.get(each, frozenset()) for each in node.all_input_nodes]
        given += [written.get(s, frozenset()) for each in node.all_input_nodes for s in storages_of(example(each))]
        uses[node] = frozenset().union(*given)
        if writes(node):
            for each in node.all_input_nodes:
                for storage in storages_of(example(each)):
                    written[storage] = written.get(storage, frozenset()) | uses[node]

    def used(outputs: Iterable[Any]) -> set[int]:
        found: set[int] = set()
        for node in outputs:
            if isinstance(node, fx.Node):
                found.update(uses.get(node, ()), *(written.get(s, ()) for s in storages_of(example(node))))
        return found

    return sorted(used(extra) - used(own))


def run_gated(
    compiled: Callable[..., Any], given: Sequence[Any], side: Iterable[int], attached: Iterable[int]
) -> Sequence[Any]:
    """The outputs of a graph whose side inputs get a gradient only from a backward pass through what is kept."""
    reached = Reached()
    inputs = list(given)
    for position in side:
        if isinstance(inputs[position], Tensor) and inputs[position].requires_grad:
            inputs[position] = Gate.apply(inputs[position], reached)  # type: ignore[no-untyped-call]
    out = list(compiled(*inputs))
    for position in attached:
        if out[position].requires_grad:
            out[position] = Mark.apply(out[position], reached)  # type: ignore[no-untyped-call]
    return out


class Reached:
    """Whether a backward pass has come through a kept value."""

    def __init__(self) -> None:
        self.now = False


class Gate(torch.autograd.Function):
    """An input whose gradient counts only if the backward pass came through a kept value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, reached: Reached) -> Tensor:
        ctx.reached = reached
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return (gradient if ctx.reached.now else None), None


class Mark(torch.autograd.Function):
    """A kept value, that tells when a backward pass comes through it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, reached: Reached) -> Tensor:
        ctx.reached = reached
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.reached.now = True
        return gradient, None
