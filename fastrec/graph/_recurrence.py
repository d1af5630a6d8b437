"""Which operations are passes of one layer: the conventions of the paper, in time n log n.

Two operations are *alike* when function, non-tensor arguments, parameters and shapes are the same. They are passes of
one layer when
- they apply the same function to the same parameters (whatever the shapes), or
- they are alike and one path of the graph repeats itself back to back through them (XYZXYZ), or
- they are alike and stand on the same side of two passes of one layer; applied until nothing more can be added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from fastrec.graph._repetition import numbered, repetitions


class Node(msgspec.Struct, frozen=True, gc=False):
    """One operation as far as recurrence is concerned; its position in the sequence is its order of execution.

    ``same`` is equal for operations that are alike, None for one that is like no other (an input, an output).
    ``parents`` are positions of earlier nodes, in the order of the arguments; ``parameters`` identities.
    """

    same: Hashable
    parents: tuple[int, ...] = ()
    function: str = ""
    parameters: tuple[int, ...] = ()
    module: str = ""


class LayerPass(NamedTuple):
    """The layer of an operation, numbered from 1 in order of first execution, and which pass of it, from 1."""

    layer: int
    number: int


def assign_layers(nodes: Sequence[Node]) -> list[LayerPass]:
    """The layer and the pass of each operation.

    >>> loop = [Node(None), Node("cos", (0,)), Node("relu", (1,)), Node("cos", (2,)), Node("relu", (3,))]
    >>> [tuple(place) for place in assign_layers(loop)]
    [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2)]

    After the paper's section on recurrent layers. What the paper leaves open: a back-to-back repetition needs
    operations of the same modules; one of a single operation needs other operands of the same functions, for
    ``a + b + c`` is a sum and no loop; neighbours correspond by side and by rank among those that are alike.
    """
    alike = numbered(node.same if node.same is not None else ("unique", i) for i, node in enumerate(nodes))
    layers = _Layers(_neighbours(nodes, alike))
    for pair in _shared_parameters(nodes):
        layers.join(*pair)
    places = numbered((what, node.module) for what, node in zip(alike, nodes, strict=True))
    families = [(node.function, node.parameters) for node in nodes]
    for pair in repetitions([node.parents for node in nodes], places, families):
        layers.join(*pair)
    return _numbers(layers, len(nodes))


def _shared_parameters(nodes: Sequence[Node]) -> Iterator[tuple[int, int]]:
    """Pairs of operations with the same function and parameters."""
    first: dict[Hashable, int] = {}
    for i, node in enumerate(nodes):
        if node.parameters:
            yield first.setdefault((node.function, node.parameters), i), i


_Neighbours = dict[tuple[bool, int, int], int]
"""(is a parent, what it is like, its rank among those alike) -> a neighbour that stands there."""


def _neighbours(nodes: Sequence[Node], alike: Sequence[int]) -> list[_Neighbours]:
    """The neighbours of each operation, by where they stand."""
    found: list[_Neighbours] = [{} for _ in nodes]
    ranks: list[dict[tuple[bool, int], int]] = [{} for _ in nodes]

    def add(i: int, is_parent: bool, neighbour: int) -> None:
        side = is_parent, alike[neighbour]
        rank = ranks[i][side] = ranks[i].get(side, -1) + 1
        found[i][is_parent, alike[neighbour], rank] = neighbour

    for i, node in enumerate(nodes):
        for parent in node.parents:
            add(i, True, parent)
        for parent in dict.fromkeys(node.parents):
            add(parent, False, i)
    return found


class _Layers:
    """Operations joined to layers; joining two joins their neighbours that stand in the same place."""

    def __init__(self, neighbours: list[_Neighbours]) -> None:
        self._neighbours = neighbours
        self._above = list(range(len(neighbours)))

    def find(self, i: int) -> int:
        above = self._above
        while above[i] != i:
            above[i] = above[above[i]]
            i = above[i]
        return i

    def join(self, a: int, b: int) -> None:
        waiting = [(a, b)]
        while waiting:
            a, b = map(self.find, waiting.pop())
            if a == b:
                continue
            small, large = sorted((a, b), key=lambda i: len(self._neighbours[i]))
            self._above[small] = large
            known = self._neighbours[large]
            for where, neighbour in self._neighbours[small].items():
                other = known.setdefault(where, neighbour)
                if other != neighbour:
                    waiting.append((other, neighbour))
            self._neighbours[small] = {}


def _numbers(layers: _Layers, count: int) -> list[LayerPass]:
    """Number layers by first execution, and passes by execution."""
    layer_of: dict[int, int] = {}
    passes: dict[int, int] = defaultdict(int)
    found = []
    for i in range(count):
        layer = layer_of.setdefault(layers.find(i), len(layer_of) + 1)
        passes[layer] += 1
        found.append(LayerPass(layer, passes[layer]))
    return found
