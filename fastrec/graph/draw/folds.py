"""Repetitions: modules side by side that do the same, one after the other.

    find_folds(nodes, boxes, edges, contents)  # -> [Fold(id='@h.0*', parent=0, period=1, boxes=(1, 2, 3))]

A fold is at least three consecutive periods, each of one or two modules, in which the same operations run on values of
the same shapes and in the same order, with parameters of the same shapes and the same edges among them. A period may
read from the one before it, and from places outside that all periods read from alike (a mask, say); behind the fold
only the last one is read. So one period can be drawn for all: what is left out can be told from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

from fastrec.graph.draw.parts import Box, Edge, Fold, Node

MIN_REPETITIONS = 3
PERIODS = (1, 2)


def find_folds(
    nodes: Sequence[Node], boxes: Sequence[Box], edges: Sequence[Edge], contents: Sequence[Sequence[int]]
) -> list[Fold]:
    """All folds of a drawing; ``contents`` are the nodes in each box, those in its boxes included."""
    finder = _Finder(nodes, boxes, edges, contents)
    parents = [-1, *range(len(boxes))]
    return [fold for parent in parents for fold in finder.folds_in(parent)]


class _Finder:
    def __init__(
        self, nodes: Sequence[Node], boxes: Sequence[Box], edges: Sequence[Edge], contents: Sequence[Sequence[int]]
    ) -> None:
        self._nodes, self._boxes, self._contents = nodes, boxes, contents
        self._parents: dict[int, list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
        self._children: dict[int, list[int]] = defaultdict(list)
        for edge in edges:
            if edge.kind == "value":
                self._parents[edge.target].append((edge.source, edge.head))
                self._children[edge.source].append(edge.target)
        self._numbers: dict[Hashable, int] = {}
        self._structures: dict[int, int] = {}

    def folds_in(self, parent: int) -> Iterator[Fold]:
        """The folds among the boxes that lie directly in one."""
        for run in self._runs(parent):
            start = 0
            while start + MIN_REPETITIONS <= len(run):
                period, count = max(((p, self._repetitions(run, start, p)) for p in PERIODS), key=_length)
                if count < MIN_REPETITIONS:
                    start += 1
                    continue
                members = tuple(run[start : start + period * count])
                yield Fold(f"{self._boxes[members[0]].id}*", parent, period, members)
                start += period * count

    def _runs(self, parent: int) -> Iterator[list[int]]:
        """Boxes between which nothing else runs."""
        if parent >= 0:
            children, nodes = list(self._boxes[parent].boxes), self._boxes[parent].nodes
        else:
            children = [index for index, box in enumerate(self._boxes) if box.parent < 0]
            nodes = [index for index, node in enumerate(self._nodes) if node.box < 0]
        if len(children) < MIN_REPETITIONS:
            return
        order = sorted([(self._contents[box][0], box) for box in children] + [(node, -1) for node in nodes])
        run: list[int] = []
        for _, box in order:
            if box >= 0:
                run.append(box)
            elif run:
                yield run
                run = []
        yield run

    def _structure(self, box: int) -> int:
        """A number that is equal for boxes that do the same in the same order with the same edges inside."""
        if box not in self._structures:
            inside = {node: position for position, node in enumerate(self._contents[box])}
            rows = tuple(
                (
                    self._nodes[node].alike,
                    self._modules_between(node, box),
                    tuple((inside.get(source, -1), head) for source, head in self._parents[node]),
                )
                for node in inside
            )
            key = (self._boxes[box].module_type, self._boxes[box].mark, rows)
            self._structures[box] = self._numbers.setdefault(key, len(self._numbers))
        return self._structures[box]

    def _modules_between(self, node: int, box: int) -> tuple[Hashable, ...]:
        """The modules between a box and a node in it, by class and mark."""
        around: list[Hashable] = []
        current = self._nodes[node].box
        while current != box:
            around.append((self._boxes[current].module_type, self._boxes[current].mark))
            current = self._boxes[current].parent
        return tuple(around)

    def _repetitions(self, run: Sequence[int], start: int, period: int) -> int:
        """How many periods repeat themselves from a place in a run on."""

        def boxes_of(number: int) -> Sequence[int]:
            return run[start + number * period : start + (number + 1) * period]

        kinds = [self._structure(box) for box in boxes_of(0)]
        before = self._positions(boxes_of(0))
        pattern: list[tuple[str, int]] | None = None
        count = 1
        while start + (count + 1) * period <= len(run):
            boxes = boxes_of(count)
            if [self._structure(box) for box in boxes] != kinds:
                break
            current = self._positions(boxes)
            sources = self._sources(before, current)
            if sources != (pattern or sources) or not self._is_read_only_by(before, current):
                break
            if pattern is None and not self._reads_alike(before, sources):
                break
            before, pattern, count = current, sources, count + 1
        return count

    def _positions(self, boxes: Sequence[int]) -> dict[int, int]:
        """The nodes of some boxes, each with its position among them."""
        return {node: i for i, node in enumerate([node for box in boxes for node in self._contents[box]])}

    def _sources(self, before: dict[int, int], current: dict[int, int]) -> list[tuple[str, int]]:
        """Where each value that a period reads comes from: itself, the period before, or one place outside."""
        sources = []
        for node in current:
            for source, _ in self._parents[node]:
                if source in current:
                    sources.append(("inside", current[source]))
                elif source in before:
                    sources.append(("before", before[source]))
                else:
                    sources.append(("outside", source))
        return sources

    def _reads_alike(self, first: dict[int, int], sources: Sequence[tuple[str, int]]) -> bool:
        """Whether the first period reads from the same places outside as the second; what it reads first may differ."""
        own = [source for node in first for source, _ in self._parents[node]]
        return len(own) == len(sources) and all(
            kind != "outside" or source == place for source, (kind, place) in zip(own, sources, strict=True)
        )

    def _is_read_only_by(self, period: dict[int, int], following: dict[int, int]) -> bool:
        """Whether nothing but a period itself and the one that follows reads its values."""
        return all(child in period or child in following for node in period for child in self._children[node])


def _length(found: tuple[int, int]) -> tuple[int, int]:
    """The more boxes a fold covers the better, and the shorter its period; one below three repetitions covers none."""
    period, count = found
    return (period * count if count >= MIN_REPETITIONS else 0, -period)
