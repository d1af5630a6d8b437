"""Where a graph repeats itself back to back (XYZXYZXYZ), found in time n log n.

The blocks of 2**k operations that end at each node are numbered, level by level; the nearest earlier end of the same
block tells with which period the path may repeat itself there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence, Set


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
