"""Operations as passes of layers, and the names of both."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple

import msgspec

from fastrec.graph.raw import REFERENCES, CapturedOp

SOURCES = ("input", "buffer")


class Layer(msgspec.Struct):
    """One layer: the operations that are its passes, by index."""

    layer_type: str
    type_number: int
    total_number: int
    ops: list[int]

    @property
    def short(self) -> str:
        """The label without the total number, as in ``conv2d_3``."""
        return f"{self.layer_type}_{self.type_number}"

    @property
    def label(self) -> str:
        """The label, as in ``conv2d_3_7``; inputs and buffers, which are no operations, have no total number."""
        return f"{self.short}_{self.total_number}" if self.total_number and self.layer_type != "output" else self.short


def named(ops: Sequence[CapturedOp], order: Iterable[int], groups: Sequence[int]) -> tuple[list[Layer], dict[int, int]]:
    """The layers in order of their first pass, and the layer of each operation.

    ``groups`` holds a number per operation of ``order``; operations with equal numbers are passes of one layer.
    """
    layers: list[Layer] = []
    by_group: dict[int, int] = {}
    layer_of: dict[int, int] = {}
    numbers: Counter[str] = Counter()
    total = 0
    for index, group in zip(order, groups, strict=True):
        place = by_group.get(group)
        if place is None:
            place = by_group[group] = len(layers)
            op = ops[index]
            layer_type = op.call.layer_type
            numbers[layer_type] += 1
            total += op.kind not in SOURCES
            layers.append(Layer(layer_type, numbers[layer_type], 0 if op.kind in SOURCES else total, []))
        layers[place].ops.append(index)
        layer_of[index] = place
    return layers, layer_of


def sameness(op: CapturedOp) -> Hashable:
    """A key that is equal for operations that do the same: function, arguments but tensors, parameters, shape."""
    call = op.call
    if op.kind != "op":
        return (op.kind, op.address)
    parameters = tuple(id(parameter.tensor) for parameter in call.parameters)
    return (call.layer_type, op.path, frozen(call.args), frozen(call.kwargs), parameters, op.shape, op.dtype)


def frozen(value: Any) -> Hashable:
    """A nested argument as something that can be compared and hashed; all tensors are the same."""
    kind = type(value)
    if kind in (int, float, bool, str, type(None)):
        return (kind, value) if kind is not float or value == value else "nan"
    if isinstance(value, REFERENCES):
        return REFERENCES
    if kind in (tuple, list):
        return tuple([frozen(item) for item in value])
    if kind is dict:
        return tuple([(key, frozen(item)) for key, item in value.items()])
    if kind is slice:
        return (slice, frozen(value.start), frozen(value.stop), frozen(value.step))
    try:
        hash(value)
    except TypeError:
        return id(value)
    return (kind, value)


def groups_of(ops: Sequence[CapturedOp], order: Sequence[int]) -> list[int]:
    """A number per operation, equal for passes of one layer."""
    positions = {index: position for position, index in enumerate(order)}
    return [place.layer for place in assign_layers([_node(ops[index], positions) for index in order])]


def _node(op: CapturedOp, positions: dict[int, int]) -> Node:
    return Node(
        same=None if op.kind in ("input", "output") else sameness(op),
        parents=tuple([positions[parent] for parent in op.parents]),
        function=f"{op.call.layer_type}{op.path}{op.address if op.kind == 'buffer' else ''}",
        parameters=tuple([id(parameter.tensor) for parameter in op.call.parameters]),
        module=op.module.address if op.module is not None else "",
    )


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


def numbered(keys: Iterable[Hashable]) -> list[int]:
    """Small integers for keys, the same for the same key."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def repetitions(
    parents: Sequence[Sequence[int]], kinds: Sequence[int], families: Sequence[Hashable]
) -> Iterator[tuple[int, int]]:
    """Pairs of nodes that correspond in two back-to-back repetitions along a path; later nodes come second.

    ``parents`` are positions of earlier nodes; nodes of one kind are alike. ``families`` are wider than kinds: a single
    operation repeats itself only where its other parents are of the same families, so that ``a + b + c`` is a sum and
    no loop.

    A loop lies on the longest path that leads to its last operation, so only the longest paths are looked at, which
    form a tree. A path repeats itself with period d where it is, for d operations, what it was d operations before.
    """
    paths = _Paths(parents, kinds)
    periods = paths.candidates()
    agreed: list[dict[int, int]] = []  # for each node, period -> for how many operations the path agrees with it
    for i, parent in enumerate(paths.parent):
        before = agreed[parent] if parent >= 0 else {}
        now = {}
        for period in sorted({*before, *periods[i]})[:_TRIED]:
            earlier = paths.ancestor(i, period)
            if earlier < 0 or paths.block(i) != paths.block(earlier):
                continue
            known = before.get(period)
            now[period] = length = known + 1 if known is not None else paths.common(i, earlier)
            if length < period or (period == 1 and paths.others(i, families) != paths.others(earlier, families)):
                continue
            yield earlier, i
            if known is None or length == period:
                yield from paths.pairs(i, earlier, period)
        agreed.append(now)


_TRIED = 16  # periods followed at one node; a bound on the work, reached by no loop that was seen


class _Paths:
    """The longest path to each node, as a tree, and the blocks of 2**k operations that end at each node."""

    def __init__(self, parents: Sequence[Sequence[int]], kinds: Sequence[int]) -> None:
        self._parents = parents
        self.parent: list[int] = []
        self.children: list[list[int]] = [[] for _ in parents]
        self.depth: list[int] = []
        for i, above in enumerate(parents):
            parent = max(above, key=self.depth.__getitem__, default=-1)
            self.parent.append(parent)
            self.depth.append(self.depth[parent] + 1 if parent >= 0 else 1)
            if parent >= 0:
                self.children[parent].append(i)
        self._blocks = [list(kinds)]
        self._above = [self.parent]

    def block(self, i: int) -> int:
        """What a node is, as a block of one operation."""
        return self._blocks[0][i]

    def others(self, i: int, families: Sequence[Hashable]) -> list[Hashable]:
        """The families of the parents of a node that are not on its path."""
        return [families[parent] for parent in self._parents[i] if parent != self.parent[i]]

    def candidates(self) -> list[set[int]]:
        """For each node, how many operations ago a block that ends there ended before, for each length of block."""
        found: list[set[int]] = [set() for _ in self.parent]
        while True:
            block, above = self._blocks[-1], self._above[-1]
            repeated = {number for number, n in Counter(block).items() if n > 1 and number >= 0}
            if not repeated:
                return found
            for i, earlier in self._nearest(block, repeated):
                found[i].add(self.depth[i] - self.depth[earlier])
            self._blocks.append(_doubled(block, above))
            self._double_steps()

    def _nearest(self, block: Sequence[int], repeated: Set[int]) -> Iterator[tuple[int, int]]:
        """Nodes where a repeated block ends, with its nearest end before, on the path to the node."""
        latest: dict[int, int] = {}
        walk = [(i, -1) for i, parent in enumerate(self.parent) if parent < 0]
        while walk:
            i, before = walk.pop()
            if i < 0:  # leave the node ~i: the path to the next one ends before it
                latest[block[~i]] = before
                continue
            if block[i] in repeated:
                earlier = latest.get(block[i], -1)
                if earlier >= 0:
                    yield i, earlier
                latest[block[i]] = i
                walk.append((~i, earlier))
            walk.extend((child, -1) for child in self.children[i])

    def ancestor(self, i: int, distance: int) -> int:
        """The node so many operations before on the path, -1 where the path is shorter."""
        k = 0
        while distance and i >= 0:
            if k == len(self._above):
                self._double_steps()
            if distance & 1:
                i = self._above[k][i]
            distance >>= 1
            k += 1
        return i

    def _double_steps(self) -> None:
        above = self._above[-1]
        self._above.append([above[j] if j >= 0 else -1 for j in above])

    def common(self, i: int, j: int) -> int:
        """For how many operations the paths that end at two nodes agree."""
        length = 0
        for k in range(len(self._blocks) - 1, -1, -1):
            while i >= 0 and j >= 0 and self._blocks[k][i] == self._blocks[k][j] != -1:
                length += 1 << k
                i, j = self._above[k][i], self._above[k][j]
        return length

    def pairs(self, i: int, j: int, count: int) -> Iterator[tuple[int, int]]:
        """The last operations of two paths, pair by pair."""
        for _ in range(count):
            yield j, i
            i, j = self.parent[i], self.parent[j]


def _doubled(block: Sequence[int], above: Sequence[int]) -> list[int]:
    """The blocks twice as long: numbers of pairs of blocks, -1 where the path is too short."""
    numbers: dict[tuple[int, int], int] = {}
    doubled = []
    for i, number in enumerate(block):
        j = above[i]
        if number < 0 or j < 0 or block[j] < 0:
            doubled.append(-1)
        else:
            doubled.append(numbers.setdefault((block[j], number), len(numbers)))
    return doubled
