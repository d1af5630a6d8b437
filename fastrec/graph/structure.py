"""The graph of a pass: what was captured, less its orphans, as layers with labels.

    graph = Graph(capture)
    graph.order                            # the operations by index, in execution order
    graph.children[3], graph.label(3)      # who reads operation 3, and what it is called
    graph.keys.find("relu_2")              # which operations a key names

A Graph is what operations, layers and the history share: they hold it, and it knows none of them. Everything in it is
worked out once, on demand. Operations are identified by their index in the capture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property

from fastrec.graph.conditions import Conditions, find_conditions
from fastrec.graph.layers import Layer, layers_of
from fastrec.graph.lookup import Keys, RecordFinder
from fastrec.graph.raw import Capture, CapturedOp, ModuleCall


class Graph:
    """The operations of a pass and how they hang together.

    For a capture that was read from a file, ``conditions`` come from there too: they need the model's source, which may
    be missing or have changed.
    """

    def __init__(self, capture: Capture, conditions: Conditions | None = None) -> None:
        self.capture = capture
        self.ops: list[CapturedOp] = capture.ops
        # A byte for each operation, orphans included, which have to be found first.
        self.from_input = _from_input(self.ops)
        self.to_output = _to_output(self.ops)
        self.order = self._without_orphans()
        if conditions is not None:
            self.conditions = conditions

    def replace(self, capture: Capture) -> None:
        """Switch to another capture of the same operations; operations and layers that hold the graph see it too."""
        vars(self).clear()  # everything here was worked out from the old capture
        vars(self).update(vars(Graph(capture)))

    def _without_orphans(self) -> list[int]:
        """The operations, without those that neither come from an input nor lead to an output.

        What Python looked at stays, because it may have steered the pass, and so do all parents of what stays. After
        the paper, Implementation, "Post-processing the model's computational graph". Where the pass was not finished,
        nobody knows what would have led to an output, so all stays.
        """
        if self.capture.failure is not None:
            return [op.index for op in self.ops]
        wanted = bytearray(a | b for a, b in zip(self.from_input, self.to_output, strict=True))
        for read in self.capture.value_reads:
            wanted[read.op] = 1
        for op in reversed(self.ops):
            if wanted[op.index]:
                for parent in op.parents:
                    wanted[parent] = 1
        return [index for index, is_wanted in enumerate(wanted) if is_wanted]

    # Operations and their neighbours.

    @cached_property
    def positions(self) -> dict[int, int]:
        """The position of each operation in ``order``."""
        return {index: position for position, index in enumerate(self.order)}

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The operations that read each operation's value, in order."""
        children: dict[int, list[int]] = defaultdict(list)
        for index in self.order:
            for parent in self.ops[index].parents:
                children[parent].append(index)
        return dict(children)

    def ancestors(self, index: int) -> set[int]:
        """All operations that an operation depends on."""
        ancestors: set[int] = set()
        todo = list(self.ops[index].parents)
        while todo:
            parent = todo.pop()
            if parent not in ancestors:
                ancestors.add(parent)
                todo.extend(self.ops[parent].parents)
        return ancestors

    def descendants(self, index: int) -> set[int]:
        """All operations that depend on an operation."""
        descendants: set[int] = set()
        todo = list(self.children.get(index, ()))
        while todo:
            child = todo.pop()
            if child not in descendants:
                descendants.add(child)
                todo.extend(self.children.get(child, ()))
        return descendants

    def between(self, starts: Iterable[int], ends: Iterable[int]) -> list[int]:
        """The operations on any path from one of the starts to one of the ends, without starts and ends."""
        starts, ends = set(starts), set(ends)
        behind: set[int] = set()
        ahead: set[int] = set()
        for index in self.order:
            if any(parent in behind or parent in starts for parent in self.ops[index].parents):
                behind.add(index)
        for index in reversed(self.order):
            if any(child in ahead or child in ends for child in self.children.get(index, ())):
                ahead.add(index)
        return [i for i in self.order if i in behind and i in ahead and i not in starts | ends]

    @cached_property
    def origins(self) -> list[frozenset[int]]:
        """The ancestors of each operation that have no parents; a set that is passed on stays one object."""
        alone = {i: frozenset((i,)) for i in self.order if not self.ops[i].parents}
        origins = [_NOTHING] * len(self.ops)
        for i in self.order:
            origins[i] = _united([alone.get(parent) or origins[parent] for parent in self.ops[i].parents])
        return origins

    @cached_property
    def reached_outputs(self) -> list[frozenset[int]]:
        """The outputs that depend on each operation, like ``origins``."""
        alone = {i: frozenset((i,)) for i in self.order if self.ops[i].kind == "output"}
        reached = [_NOTHING] * len(self.ops)
        for i in reversed(self.order):
            reached[i] = _united([alone.get(child) or reached[child] for child in self.children.get(i, ())])
        return reached

    @cached_property
    def distances_from_input(self) -> Distances:
        """How far each operation is from the inputs."""
        distances = Distances(len(self.ops))
        for index in self.order:
            distances.add(index, self.ops[index].parents, is_end=self.ops[index].kind == "input")
        return distances

    @cached_property
    def distances_from_output(self) -> Distances:
        """How far each operation is from the outputs."""
        distances = Distances(len(self.ops))
        for index in reversed(self.order):
            distances.add(index, self.children.get(index, ()), is_end=self.ops[index].kind == "output")
        return distances

    # Layers, labels, numbers and keys.

    @cached_property
    def _layers(self) -> tuple[list[Layer], dict[int, Layer]]:
        return layers_of(self.ops, self.order)

    @property
    def layers(self) -> list[Layer]:
        """All layers, in order of their first pass."""
        return self._layers[0]

    def layer(self, index: int) -> Layer:
        """The layer of an operation."""
        return self._layers[1][index]

    @cached_property
    def pass_numbers(self) -> dict[int, int]:
        """Which pass of its layer each operation is, from 1."""
        return {op: number for layer in self.layers for number, op in enumerate(layer.ops, 1)}

    def label(self, index: int) -> str:
        """The label of an operation, with its pass where the layer has several."""
        return self.labels[index]

    @cached_property
    def labels(self) -> dict[int, str]:
        """The label of each operation, with its pass where the layer has several."""
        labels = {}
        for layer in self.layers:
            has_several = len(layer.ops) > 1
            for number, index in enumerate(layer.ops, 1):
                labels[index] = f"{layer.label}:{number}" if has_several else layer.label
        return labels

    @cached_property
    def passes(self) -> dict[str, list[str]]:
        """All passes of each layer, by its label."""
        return {
            layer.label: [f"{layer.label}:{number}" for number in range(1, len(layer.ops) + 1)] for layer in self.layers
        }

    @cached_property
    def operation_numbers(self) -> dict[int, int]:
        """How many tensor operations had run by each operation, itself included."""
        numbers, count = {}, 0
        for index in self.order:
            count += self.ops[index].kind == "op"
            numbers[index] = count
        return numbers

    @cached_property
    def saved(self) -> list[int]:
        """The operations that have a saved value."""
        return [index for index in self.order if self.ops[index].is_saved]

    @property
    def numbered(self) -> list[int]:
        """The operations that ordinal numbers count: the saved ones, all where none is."""
        return self.saved or self.order

    @cached_property
    def keys(self) -> Keys:
        """Finds operations by key."""
        return Keys(self.ops, self.order, self.layers, self.submodule_calls, self.numbered)

    @cached_property
    def records(self) -> RecordFinder:
        """Finds the operation of a record of the fast path."""
        return RecordFinder(self.capture)

    # Modules and conditions.

    @cached_property
    def submodule_calls(self) -> list[ModuleCall]:
        """The calls of all modules but the root."""
        return [call for call in self.capture.module_calls if call.address]

    @cached_property
    def module_entries(self) -> dict[int, list[ModuleCall]]:
        """The calls of submodules that each operation's value went into, in order."""
        entries: dict[int, list[ModuleCall]] = {}
        for call in self.submodule_calls:
            for op in call.entered:
                entries.setdefault(op, []).append(call)
        return entries

    @cached_property
    def module_exits(self) -> dict[int, list[ModuleCall]]:
        """The calls of submodules that each operation's value left, in order."""
        exits: dict[int, list[ModuleCall]] = {}
        for call in self.capture.returns:
            for op in call.exited if call.address else ():
                exits.setdefault(op, []).append(call)
        return exits

    @cached_property
    def conditions(self) -> Conditions:
        """What is known of the conditions of the pass."""
        return find_conditions(self.capture, self.order, self.children, self.to_output, self.labels)


class Distances:
    """The least and the largest number of steps between each operation and an end; None where there is no path."""

    def __init__(self, size: int) -> None:
        self.least: list[int | None] = [None] * size
        self.most: list[int | None] = [None] * size

    def add(self, index: int, neighbours: Iterable[int], *, is_end: bool) -> None:
        """Add an operation, after all its neighbours on the way to the end."""
        least = [d for i in neighbours if (d := self.least[i]) is not None]
        most = [d for i in neighbours if (d := self.most[i]) is not None]
        self.least[index] = 0 if is_end else min(least) + 1 if least else None
        self.most[index] = max(most) + 1 if most else 0 if is_end else None


_NOTHING: frozenset[int] = frozenset()


def _united(sets: Sequence[frozenset[int]]) -> frozenset[int]:
    """The union of some sets: the largest one itself if it contains the others."""
    largest = max(sets, key=len, default=_NOTHING)
    return largest if all(s is largest or s <= largest for s in sets) else largest.union(*sets)


def _from_input(ops: Sequence[CapturedOp]) -> bytearray:
    """Which operations have an input among their ancestors, inputs themselves included."""
    flags = bytearray(len(ops))
    for op in ops:
        flags[op.index] = op.kind == "input" or any(flags[parent] for parent in op.parents)
    return flags


def _to_output(ops: Sequence[CapturedOp]) -> bytearray:
    """Which operations have an output of the model among their descendants, outputs themselves included."""
    flags = bytearray(len(ops))
    for op in reversed(ops):
        if op.kind == "output":
            flags[op.index] = 1
        if flags[op.index]:
            for parent in op.parents:
                flags[parent] = 1
    return flags
