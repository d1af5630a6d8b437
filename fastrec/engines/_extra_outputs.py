"""More outputs for a compiled graph: values as they were at one place in it, without a change to what it returned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fastrec._errors import UnsupportedModelError
from fastrec._ops import reads_inplace_flag
from fastrec.engines._aligned import example, facts_of


class ExtraOutputs:
    """Adds outputs behind those that a graph has."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._output = next(node for node in graph.nodes if node.op == "output")
        self._outputs: list[Any] = list(self._output.args[0])
        self.n_own = len(self._outputs)
        self._order = {node: place for place, node in enumerate(graph.nodes)}
        self._shared = {storage for node in self._fixed() for storage in _storages(example(node))}
        self._done = False
        self._known: dict[Any, int] = {}
        self._writers = [node for node in graph.nodes if _writes(node)]

    def add(self, value: fx.Node, after: fx.Node | None, *, attached: bool) -> int:
        """The position of an output that holds a value as it was after a node (None: when the graph began).

        Arguments:
            attached: gradients have to flow through it; else it takes no part in them.
        """
        place = max(self._order.get(value, 0), self._order[after] if after is not None else 0)
        written = self._written_later(value, place)
        if value in self._outputs[: self.n_own] and not written:
            return self._outputs.index(value)  # whether attached or not is the model's own choice
        key = value, self._next_writer(value, place), attached
        if key not in self._known:
            if self._done:
                raise UnsupportedModelError(
                    "one piece of compiled code runs at several places of the model, and other values are kept at "
                    "some than at others; keep the same at all of them, or record the model that was compiled with "
                    "engine='eager'"
                )
            self._known[key] = len(self._outputs)
            self._outputs.append(self._taken(value, after, written=written, attached=attached))
        return self._known[key]

    def done(self) -> None:
        """Let the graph return them."""
        self._done = True
        self._output.args = (tuple(self._outputs),)
        self._graph.lint()

    def _taken(self, value: fx.Node, after: fx.Node | None, *, written: bool, attached: bool) -> fx.Node:
        shared = not self._shared.isdisjoint(_storages(example(value)))
        self._shared.update(_storages(example(value)))
        place = value if after is None or self._order.get(after, 0) <= self._order.get(value, 0) else after
        taken = value
        if not attached and example(value).requires_grad:
            taken = self._then("detach", taken, place)
            place = taken
        if written or shared:
            taken = self._then("clone", taken, place)
        return taken

    def _then(self, method: str, value: fx.Node, place: fx.Node) -> fx.Node:
        if place.op == "placeholder":  # they all stand before everything else
            place = [node for node in self._graph.nodes if node.op == "placeholder"][-1]
        with self._graph.inserting_after(place):
            node = self._graph.call_method(method, (value,))
        node.meta["example_value"] = example(value)
        return node

    def _fixed(self) -> Iterator[fx.Node]:
        """The nodes whose memory somebody else has too."""
        yield from (node for node in self._graph.nodes if node.op in ("placeholder", "get_attr"))
        yield from (node for node in self._outputs if isinstance(node, fx.Node))

    def _written_later(self, value: fx.Node, place: int) -> bool:
        return self._next_writer(value, place) is not None

    def _next_writer(self, value: fx.Node, place: int) -> Any:
        """The first node after a place that may write into the memory of a value."""
        storages = _storages(example(value))
        for node in self._writers:
            if self._order[node] > place:
                for given in node.all_input_nodes:
                    if not storages.isdisjoint(_storages(example(given))):
                        return node
        return None


def _writes(node: fx.Node) -> bool:
    """Whether a node may write into what it is given."""
    if node.op not in ("call_function", "call_method"):
        return node.op == "call_module"
    facts = facts_of(node)
    if facts is None:
        return False
    return reads_inplace_flag(facts, node.args, node.kwargs)


def _storages(value: Any) -> set[int]:
    """The memory of all tensors in a value, as it was traced."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            return set()
        return {value.untyped_storage()._cdata}
    if isinstance(value, tuple | list):
        return {storage for item in value for storage in _storages(item)}
    return set()
