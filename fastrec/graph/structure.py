"""The graph of a pass: what was captured, less its orphans, as layers with names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property

from fastrec.graph.layers import Layer, groups_of, named
from fastrec.graph.raw import Capture, CapturedOp, ModuleCall, ValueRead


class Graph:
    """The operations of a pass and how they hang together, by index; worked out once.

    ``order`` are the indices of the operations that the graph has.
    """

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.ops: list[CapturedOp] = capture.ops
        self.from_input = from_input(self.ops)
        self.to_output = to_output(self.ops)
        self.order = kept(self.ops, capture.truths, self.from_input, self.to_output)

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The operations that read each operation's value."""
        return children_of(self.ops, self.order)

    @cached_property
    def _named(self) -> tuple[list[Layer], dict[int, int]]:
        return named(self.ops, self.order, groups_of(self.ops, self.order))

    @property
    def layers(self) -> list[Layer]:
        """All layers, in order of their first pass."""
        return self._named[0]

    def layer(self, index: int) -> Layer:
        """The layer of an operation."""
        return self._named[0][self._named[1][index]]

    @cached_property
    def pass_numbers(self) -> dict[int, int]:
        """Which pass of its layer each operation is, from 1."""
        return {op: number for layer in self.layers for number, op in enumerate(layer.ops, 1)}

    @cached_property
    def positions(self) -> dict[int, int]:
        """The place of each operation in ``order``."""
        return {index: position for position, index in enumerate(self.order)}

    @cached_property
    def numbers(self) -> dict[int, int]:
        """How many tensor operations had run by each operation, itself included."""
        found, count = {}, 0
        for index in self.order:
            count += self.ops[index].kind == "op"
            found[index] = count
        return found

    @cached_property
    def distances_from_input(self) -> Distances:
        """How far each operation is from the inputs."""
        return distances_from_input(self.ops, self.order)

    @cached_property
    def distances_from_output(self) -> Distances:
        """How far each operation is from the outputs."""
        return distances_from_output(self.ops, self.order, self.children)

    @cached_property
    def module_exits(self) -> dict[int, list[ModuleCall]]:
        """The calls of submodules that each operation's value left, in order."""
        found: dict[int, list[ModuleCall]] = {}
        for call in self.capture.returns:
            for op in call.exited if call.address else ():
                found.setdefault(op, []).append(call)
        return found

    @cached_property
    def module_entries(self) -> dict[int, list[ModuleCall]]:
        """The calls of submodules that each operation's value went into, in order."""
        found: dict[int, list[ModuleCall]] = {}
        for call in self.submodule_calls:
            for op in call.entered:
                found.setdefault(op, []).append(call)
        return found

    @cached_property
    def submodule_calls(self) -> list[ModuleCall]:
        """The calls of all modules but the root."""
        return [call for call in self.capture.module_calls if call.address]

    def label(self, index: int) -> str:
        """The label of an operation, with its pass where the layer has several."""
        return self._labels[index]

    @cached_property
    def _labels(self) -> dict[int, str]:
        found = {}
        for layer in self.layers:
            several = len(layer.ops) > 1
            for number, index in enumerate(layer.ops, 1):
                found[index] = f"{layer.label}:{number}" if several else layer.label
        return found

    @cached_property
    def passes(self) -> dict[str, list[str]]:
        """All passes of each layer, by its label."""
        return {
            layer.label: [f"{layer.label}:{number}" for number in range(1, len(layer.ops) + 1)] for layer in self.layers
        }


def from_input(ops: Sequence[CapturedOp]) -> bytearray:
    """Which operations have an input among their ancestors, inputs themselves included."""
    found = bytearray(len(ops))
    for op in ops:
        found[op.index] = op.kind == "input" or any(found[parent] for parent in op.parents)
    return found


def to_output(ops: Sequence[CapturedOp]) -> bytearray:
    """Which operations have an output of the model among their descendants, outputs themselves included."""
    found = bytearray(len(ops))
    for op in reversed(ops):
        if op.kind == "output":
            found[op.index] = 1
        if found[op.index]:
            for parent in op.parents:
                found[parent] = 1
    return found


def kept(ops: Sequence[CapturedOp], truths: Iterable[ValueRead], reached: bytearray, reaching: bytearray) -> list[int]:
    """The operations less the orphans: those that neither come from an input nor lead to an output.

    What Python looked at stays, because it may have steered the pass, and so do all parents of what stays. After the
    paper, Implementation, "Post-processing the model's computational graph".
    """
    wanted = bytearray(a | b for a, b in zip(reached, reaching, strict=True))
    for truth in truths:
        wanted[truth.op] = 1
    for op in reversed(ops):
        if wanted[op.index]:
            for parent in op.parents:
                wanted[parent] = 1
    return [index for index, keep in enumerate(wanted) if keep]


def children_of(ops: Sequence[CapturedOp], order: Iterable[int]) -> dict[int, list[int]]:
    """The operations that read each operation's value, in order."""
    found: dict[int, list[int]] = defaultdict(list)
    for index in order:
        for parent in ops[index].parents:
            found[parent].append(index)
    return found


class Distances:
    """The least and the largest number of steps between each operation and an end; None where there is no path."""

    def __init__(self, size: int) -> None:
        self.least: list[int | None] = [None] * size
        self.most: list[int | None] = [None] * size

    def reach(self, index: int, before: Iterable[int], *, is_end: bool) -> None:
        """Take in an operation after all those before it on the way from the end."""
        least = [d for i in before if (d := self.least[i]) is not None]
        most = [d for i in before if (d := self.most[i]) is not None]
        self.least[index] = 0 if is_end else min(least) + 1 if least else None
        self.most[index] = max(most) + 1 if most else 0 if is_end else None


def distances_from_input(ops: Sequence[CapturedOp], order: Sequence[int]) -> Distances:
    """How far each operation is from the inputs."""
    found = Distances(len(ops))
    for index in order:
        found.reach(index, ops[index].parents, is_end=ops[index].kind == "input")
    return found


def distances_from_output(ops: Sequence[CapturedOp], order: Sequence[int], children: dict[int, list[int]]) -> Distances:
    """How far each operation is from the outputs."""
    found = Distances(len(ops))
    for index in reversed(order):
        found.reach(index, children.get(index, ()), is_end=ops[index].kind == "output")
    return found


def ancestors(ops: Sequence[CapturedOp], index: int) -> set[int]:
    """All operations that an operation comes from, without itself."""
    found: set[int] = set()
    todo = list(ops[index].parents)
    while todo:
        parent = todo.pop()
        if parent not in found:
            found.add(parent)
            todo.extend(ops[parent].parents)
    return found


def descendants(children: dict[int, list[int]], index: int) -> set[int]:
    """All operations that come from an operation, without itself."""
    found: set[int] = set()
    todo = list(children.get(index, ()))
    while todo:
        child = todo.pop()
        if child not in found:
            found.add(child)
            todo.extend(children.get(child, ()))
    return found
