"""The edges of a pass's drawing, and what is written at their ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from fastrec.graph.draw.parts import Edge
from fastrec.graph.draw.text import ranges
from fastrec.graph.raw import CapturedCall, CapturedOp, Overwritten, Ref
from fastrec.graph.structure import Graph

Role = Literal["inside", "from outside", "to outside"]
"""How a node stands for an operation: as itself, or, of a module that is drawn alone, as an end."""

# The order of their two values does not matter, unless a keyword such as alpha tells them apart.
COMMUTATIVE = frozenset(
    {"add", "mul", "eq", "ne", "maximum", "minimum", "bitwiseand", "bitwiseor", "bitwisexor"}
    | {"logicaland", "logicalor", "logicalxor", "isclose", "hypot", "logaddexp", "logaddexp2", "gcd", "lcm"}
)


class _RolledPasses(msgspec.Struct):
    """The passes of two layers between which a value goes, by operation, and the marks where it arrives."""

    sources: list[int] = []
    targets: list[int] = []
    marks: dict[str, None] = {}


class EdgeBuilder:
    """Makes edges; ``roles`` tells which node stands for an operation."""

    def __init__(self, graph: Graph, roles: Mapping[Role, Mapping[int, int]], *, rolled: bool) -> None:
        self._graph = graph
        self._starts = graph.conditions.starts
        self._inside = roles["inside"]
        self._from_outside = roles["from outside"]
        self._to_outside = roles["to outside"]
        self._is_rolled = rolled

    def value_edges(self) -> list[Edge]:
        """Values that go from node to node, in the order in which they arrive."""
        passes: dict[tuple[int, int], _RolledPasses] = {}
        for index, target in self._inside.items():
            op = self._graph.ops[index]
            places = argument_marks(op.call) if len(op.parents) > 1 else {}
            for parent in op.parents:
                source = self._inside.get(parent, self._from_outside.get(parent))
                if source is not None:
                    edge = passes.setdefault((source, target), _RolledPasses())
                    edge.sources.append(parent)
                    edge.targets.append(index)
                    edge.marks.update(dict.fromkeys(self._marks(op, parent, places)))
        for index, target in self._to_outside.items():
            passes.setdefault((self._inside[index], target), _RolledPasses()).sources.append(index)
        return [self._edge(*ends, found) for ends, found in passes.items()]

    def failure_edges(self, node: int | None) -> list[Edge]:
        """Values that went into the operation that ended the pass."""
        failure = self._graph.capture.failure
        if failure is None or failure.call is None or node is None:
            return []
        marks = argument_marks(failure.call) if len(failure.parents) > 1 else {}
        return [
            Edge(self._inside[parent], node, tuple(marks.get(parent, ())), (), not self._graph.from_input[parent])
            for parent in failure.parents
            if parent in self._inside
        ]

    def _edge(self, source: int, target: int, passes: _RolledPasses) -> Edge:
        head = [*passes.marks, *self._which_passes("In", passes.targets)]
        tail = self._which_passes("Out", passes.sources)
        dashed = not any(self._graph.from_input[parent] for parent in passes.sources)
        return Edge(source, target, tuple(head), tuple(tail), dashed)

    def _marks(self, op: CapturedOp, parent: int, places: Mapping[int, list[str]]) -> Iterator[str]:
        """What is written where a value arrives at an operation: IF, and as which argument."""
        graph = self._graph
        if op.index in self._starts and (graph.to_output[parent] or graph.ops[parent].kind != "op"):
            yield "IF"
        if op.call.layer_type not in COMMUTATIVE or op.call.kwargs.get("alpha", 1) != 1:
            yield from places.get(parent, ())
        else:
            yield from (mark for mark in places.get(parent, ()) if not mark.startswith("arg "))

    def _which_passes(self, word: str, indices: Sequence[int]) -> Iterator[str]:
        """The passes of a layer that an edge is about, where it is not about all of them."""
        graph = self._graph
        known = [index for index in indices if index in graph.positions] if self._is_rolled else []
        if known:
            numbers = {graph.pass_numbers[index] for index in known}
            if len(numbers) < len(graph.layer(known[0]).ops):
                yield f"{word} {ranges(numbers)}"

    def backward_edges(self) -> list[Edge]:
        """Gradients went from each operation that got one to those of its parents that did, too."""
        gradients = self._graph.capture.gradients
        ends: dict[tuple[int, int], None] = {}
        for index, target in self._inside.items():
            for parent in self._graph.ops[index].parents if index in gradients else ():
                source = self._inside.get(parent)
                if parent in gradients and source is not None:
                    ends[target, source] = None
        return [Edge(*pair, kind="backward") for pair in ends]


def argument_marks(call: CapturedCall) -> dict[int, list[str]]:
    """At which arguments of a call each operation's value went in: ``arg 0``, ``arg 0[2]``, ``mask``."""
    marks: dict[int, list[str]] = {}
    arguments = [(f"arg {position}", argument) for position, argument in enumerate(call.args)]
    for name, argument in [*arguments, *call.kwargs.items()]:
        for path, leaf in _paths(argument):
            if isinstance(leaf, Ref | Overwritten):
                marks.setdefault(leaf.op, []).append(f"{name}{path}")
    return marks


def _paths(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested argument, each with its path in it."""
    if isinstance(value, tuple | list):
        for position, item in enumerate(value):
            yield from _paths(item, f"{path}[{position}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, f"{path}[{key!r}]")
    elif isinstance(value, slice):
        for name in ("start", "stop", "step"):
            yield from _paths(getattr(value, name), f"{path}.{name}")
    else:
        yield path, value
