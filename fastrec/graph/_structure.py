"""Where each operation stands between inputs and outputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from fastrec.graph._raw import Op, Truth


def from_input(ops: Sequence[Op]) -> bytearray:
    """Which operations have an input among their ancestors, inputs themselves included."""
    found = bytearray(len(ops))
    for op in ops:
        found[op.index] = op.kind == "input" or any(found[parent] for parent in op.parents)
    return found


def to_output(ops: Sequence[Op]) -> bytearray:
    """Which operations have an output of the model among their descendants, outputs themselves included."""
    found = bytearray(len(ops))
    for op in reversed(ops):
        if op.kind == "output":
            found[op.index] = 1
        if found[op.index]:
            for parent in op.parents:
                found[parent] = 1
    return found


def kept(ops: Sequence[Op], truths: Iterable[Truth], reached: bytearray, reaching: bytearray) -> list[int]:
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


def children_of(ops: Sequence[Op], order: Iterable[int]) -> dict[int, list[int]]:
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


def distances_from_input(ops: Sequence[Op], order: Sequence[int]) -> Distances:
    """How far each operation is from the inputs."""
    found = Distances(len(ops))
    for index in order:
        found.reach(index, ops[index].parents, is_end=ops[index].kind == "input")
    return found


def distances_from_output(ops: Sequence[Op], order: Sequence[int], children: dict[int, list[int]]) -> Distances:
    """How far each operation is from the outputs."""
    found = Distances(len(ops))
    for index in reversed(order):
        found.reach(index, children.get(index, ()), is_end=ops[index].kind == "output")
    return found


def ancestors(ops: Sequence[Op], index: int) -> set[int]:
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
