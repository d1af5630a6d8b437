"""Which operations are passes of the same layer, and what layers are called.

    layers, layer_of = layers_of(ops, order)
    layers[3].label, layers[3].ops        # "linear_1_2", [4, 9]: two passes of one layer

After the paper's section on recurrent layers, operations are passes of one layer if they have the same function and
parameters; if they are alike and stand on the same side of two passes of a layer, and so on outward; or if a sequence
of them without parameters repeats back to back (XYZXYZXYZ, but not XYZAXYZBXYZ).

The first two rules are a union-find over operations: joining two also joins their neighbours in the same place. The
third is a search for repetitions along the paths of the graph, in O(n log n): see ``repetitions``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple

import msgspec

from fastrec.graph.raw import REFERENCES, CapturedOp

_SOURCES = ("input", "buffer")


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


def layers_of(ops: Sequence[CapturedOp], order: Sequence[int]) -> tuple[list[Layer], dict[int, Layer]]:
    """The layers in order of their first pass, and the layer of each operation."""
    positions = {index: position for position, index in enumerate(order)}
    passes = assign_layers([_comparable(ops[index], positions) for index in order])
    layers: list[Layer] = []
    layer_of: dict[int, Layer] = {}
    type_counts: Counter[str] = Counter()
    total = 0
    for index, layer_pass in zip(order, passes, strict=True):
        if layer_pass.layer > len(layers):  # they are numbered in order of the first pass
            op = ops[index]
            layer_type, is_source = op.call.layer_type, op.kind in _SOURCES
            type_counts[layer_type] += 1
            total += not is_source
            layers.append(Layer(layer_type, type_counts[layer_type], 0 if is_source else total, []))
        layer = layer_of[index] = layers[layer_pass.layer - 1]
        layer.ops.append(index)
    return layers, layer_of


class ComparableOp(msgspec.Struct, frozen=True, gc=False):
    """What decides which layer an operation is a pass of; operations are compared in order of execution.

    ``same`` is equal for operations that are alike, None for one that is unlike all others (an input, an output).
    ``parents`` are positions of earlier operations, in the order of the arguments; ``parameters`` are identities.
    """

    same: Hashable
    parents: tuple[int, ...] = ()
    function: str = ""
    parameters: tuple[int, ...] = ()
    module: str = ""


def _comparable(op: CapturedOp, positions: dict[int, int]) -> ComparableOp:
    return ComparableOp(
        same=None if op.kind in ("input", "output") else _sameness(op),
        parents=tuple([positions[parent] for parent in op.parents]),
        function=f"{op.call.layer_type}{op.path}{op.address if op.kind == 'buffer' else ''}",
        parameters=tuple([id(parameter.tensor) for parameter in op.call.parameters]),
        module=op.module.address if op.module is not None else "",
    )


def _sameness(op: CapturedOp) -> Hashable:
    """A key that is equal for operations that do the same: function, parameters, other arguments, shape and dtype."""
    call = op.call
    if op.kind != "op":
        return (op.kind, op.address)
    parameters = tuple(id(parameter.tensor) for parameter in call.parameters)
    return (call.layer_type, op.path, _hashable(call.args), _hashable(call.kwargs), parameters, op.shape, op.dtype)


def _hashable(value: Any) -> Hashable:
    """A template in a form that can be compared and hashed; all tensors are equal."""
    kind = type(value)
    if kind in (int, float, bool, str, type(None)):
        return (kind, value) if kind is not float or value == value else "nan"  # NaN is not equal to itself
    if isinstance(value, REFERENCES):
        return REFERENCES
    if kind in (tuple, list):
        return tuple([_hashable(item) for item in value])
    if kind is dict:
        return tuple([(key, _hashable(item)) for key, item in value.items()])
    if kind is slice:
        return (slice, _hashable(value.start), _hashable(value.stop), _hashable(value.step))
    try:
        hash(value)
    except TypeError:
        return id(value)
    return (kind, value)


class LayerPass(NamedTuple):
    """The layer of an operation, numbered from 1 in order of first execution, and which pass of it, from 1."""

    layer: int
    number: int


def assign_layers(ops: Sequence[ComparableOp]) -> list[LayerPass]:
    """The layer and the pass of each operation.

    >>> alike = [None, "cos", "relu", "cos", "relu"]
    >>> loop = [ComparableOp(same, (i - 1,) if i else ()) for i, same in enumerate(alike)]
    >>> [tuple(layer_pass) for layer_pass in assign_layers(loop)]
    [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2)]

    Where the paper leaves it open: a back-to-back repetition needs operations of the same modules; a repetition of a
    single operation needs other operands of the same functions, because ``a + b + c`` is a sum, not a loop; neighbours
    correspond by side and by rank among those that are alike.
    """
    kinds = _numbered(op.same if op.same is not None else ("unique", i) for i, op in enumerate(ops))
    joined = _JoinedOps(_neighbours(ops, kinds))
    for pair in _same_parameters(ops):
        joined.join(*pair)
    kinds_in_module = _numbered((kind, op.module) for kind, op in zip(kinds, ops, strict=True))
    families = [(op.function, op.parameters) for op in ops]
    for pair in repetitions([op.parents for op in ops], kinds_in_module, families):
        joined.join(*pair)
    return _layer_passes(joined, len(ops))


def _layer_passes(joined: _JoinedOps, count: int) -> list[LayerPass]:
    """Number layers by first execution, and passes by execution."""
    numbers: dict[int, int] = {}
    passes: dict[int, int] = defaultdict(int)
    layer_passes = []
    for i in range(count):
        layer = numbers.setdefault(joined.find(i), len(numbers) + 1)
        passes[layer] += 1
        layer_passes.append(LayerPass(layer, passes[layer]))
    return layer_passes


def _numbered(keys: Iterable[Hashable]) -> list[int]:
    """Small integers for keys, the same for the same key."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _same_parameters(ops: Sequence[ComparableOp]) -> Iterator[tuple[int, int]]:
    """Pairs of operations with the same function and parameters."""
    first: dict[Hashable, int] = {}
    for i, op in enumerate(ops):
        if op.parameters:
            yield first.setdefault((op.function, op.parameters), i), i


_Neighbours = dict[tuple[bool, int, int], int]
"""(is it a parent, its kind, its rank among those of its kind) -> the neighbour in this place."""


def _neighbours(ops: Sequence[ComparableOp], kinds: Sequence[int]) -> list[_Neighbours]:
    """The neighbours of each operation, by place."""
    neighbours: list[_Neighbours] = [{} for _ in ops]
    ranks: list[dict[tuple[bool, int], int]] = [{} for _ in ops]

    def add(i: int, is_parent: bool, neighbour: int) -> None:
        side = is_parent, kinds[neighbour]
        rank = ranks[i][side] = ranks[i].get(side, -1) + 1
        neighbours[i][is_parent, kinds[neighbour], rank] = neighbour

    for i, op in enumerate(ops):
        for parent in op.parents:
            add(i, True, parent)
        for parent in dict.fromkeys(op.parents):
            add(parent, False, i)
    return neighbours


class _JoinedOps:
    """Operations joined into layers; joining two also joins their neighbours in the same place.

    A union-find with path halving; the smaller set of neighbours is merged into the larger one.
    """

    def __init__(self, neighbours: list[_Neighbours]) -> None:
        self._neighbours = neighbours
        self._above = list(range(len(neighbours)))

    def find(self, i: int) -> int:
        """The representative of all operations that this one is joined with."""
        above = self._above
        while above[i] != i:
            above[i] = above[above[i]]
            i = above[i]
        return i

    def join(self, a: int, b: int) -> None:
        """Make two operations passes of one layer."""
        waiting = [(a, b)]
        while waiting:
            a, b = map(self.find, waiting.pop())
            if a == b:
                continue
            small, large = sorted((a, b), key=lambda i: len(self._neighbours[i]))
            self._above[small] = large
            merged = self._neighbours[large]
            for place, neighbour in self._neighbours[small].items():
                other = merged.setdefault(place, neighbour)
                if other != neighbour:
                    waiting.append((other, neighbour))
            self._neighbours[small] = {}


MAX_PERIODS = 16
"""How many periods are followed at one operation: a bound on the work that no real model has reached so far."""


def repetitions(
    parents: Sequence[Sequence[int]], kinds: Sequence[int], families: Sequence[Hashable]
) -> Iterator[tuple[int, int]]:
    """Pairs of operations that correspond in two back-to-back repetitions along a path; the later one comes second.

    ``parents`` are positions of earlier operations; operations of one kind are alike. ``families`` are wider than
    kinds: a single operation repeats itself only if its other parents are of the same families, so that ``a + b + c``
    is a sum, not a loop.

    A loop lies on the longest path to its last operation, so only longest paths are searched; they form a tree. A path
    repeats itself with period d where its last d operations equal the d operations before them.
    """
    paths = _LongestPaths(parents, kinds)
    candidates = paths.candidate_periods()
    agreements: list[dict[int, int]] = []  # for each operation, period -> over how many operations its path agrees
    for i, parent in enumerate(paths.parent):
        previous = agreements[parent] if parent >= 0 else {}
        agreement = {}
        for period in sorted({*previous, *candidates[i]})[:MAX_PERIODS]:
            earlier = paths.ancestor(i, period)
            if earlier < 0 or paths.kind(i) != paths.kind(earlier):
                continue
            length = previous[period] + 1 if period in previous else paths.common_length(i, earlier)
            agreement[period] = length
            if length < period or (period == 1 and paths.others(i, families) != paths.others(earlier, families)):
                continue
            yield earlier, i
            if period not in previous or length == period:
                yield from paths.pairs(i, earlier, period)
        agreements.append(agreement)


class _LongestPaths:
    """The longest path to each operation; these paths form a tree.

    For each k, the blocks of 2**k operations that end at an operation are numbered so that equal blocks have equal
    numbers; a block of 2**(k+1) is a pair of blocks of 2**k. So two paths are compared in log n steps, and a repetition
    shows as a block that ends twice on one path.
    """

    def __init__(self, parents: Sequence[Sequence[int]], kinds: Sequence[int]) -> None:
        self._parents = parents
        self.parent: list[int] = []
        self._children: list[list[int]] = [[] for _ in parents]
        self._depth: list[int] = []
        for i, candidates in enumerate(parents):
            parent = max(candidates, key=self._depth.__getitem__, default=-1)
            self.parent.append(parent)
            self._depth.append(self._depth[parent] + 1 if parent >= 0 else 1)
            if parent >= 0:
                self._children[parent].append(i)
        self._blocks = [list(kinds)]  # for each k, the number of the block that ends at each operation; -1 for none
        self._above = [self.parent]  # for each k, the operation 2**k steps up; -1 for none

    def kind(self, i: int) -> int:
        """The kind of an operation: its block of one."""
        return self._blocks[0][i]

    def others(self, i: int, families: Sequence[Hashable]) -> list[Hashable]:
        """The families of the parents of an operation that are not on its path."""
        return [families[parent] for parent in self._parents[i] if parent != self.parent[i]]

    def candidate_periods(self) -> list[set[int]]:
        """For each operation, how many steps earlier a block that ends there last ended, for each length of block."""
        periods: list[set[int]] = [set() for _ in self.parent]
        while True:
            block, above = self._blocks[-1], self._above[-1]
            repeated = {number for number, count in Counter(block).items() if count > 1 and number >= 0}
            if not repeated:
                return periods
            for i, earlier in self._nearest_repetitions(block, repeated):
                periods[i].add(self._depth[i] - self._depth[earlier])
            self._blocks.append(_doubled(block, above))
            self._double_steps()

    def _nearest_repetitions(self, block: Sequence[int], repeated: Set[int]) -> Iterator[tuple[int, int]]:
        """Operations where a repeated block ends, each with the previous end of that block on the same path."""
        latest: dict[int, int] = {}
        walk = [(i, -1) for i, parent in enumerate(self.parent) if parent < 0]
        while walk:
            i, outer = walk.pop()
            if i < 0:  # the walk backs out of operation ~i: on other paths the block last ended further up
                latest[block[~i]] = outer
                continue
            if block[i] in repeated:
                earlier = latest.get(block[i], -1)
                if earlier >= 0:
                    yield i, earlier
                latest[block[i]] = i
                walk.append((~i, earlier))
            walk.extend((child, -1) for child in self._children[i])

    def ancestor(self, i: int, distance: int) -> int:
        """The operation ``distance`` steps up the path, -1 if the path is shorter."""
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

    def common_length(self, i: int, j: int) -> int:
        """Over how many operations the paths that end at two operations agree."""
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
    """Blocks of twice the length: numbers of pairs of blocks, -1 where the path is too short."""
    numbers: dict[tuple[int, int], int] = {}
    doubled = []
    for i, number in enumerate(block):
        j = above[i]
        if number < 0 or j < 0 or block[j] < 0:
            doubled.append(-1)
        else:
            doubled.append(numbers.setdefault((block[j], number), len(numbers)))
    return doubled
