"""More outputs for a compiled graph: values as they were at one place in it, without a change to what it returned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fastrec._errors import UnsupportedModelError
from fastrec._ops import reads_inplace_flag
from fastrec.engines._aligned import ADDED, example, facts_of


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
