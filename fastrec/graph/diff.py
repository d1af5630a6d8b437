"""Where two passes differ: as a report for the user, and as an error where they must not."""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest

import msgspec

from fastrec._errors import GraphDifferenceError
from fastrec.graph.raw import Capture, CapturedOp
from fastrec.graph.structure import Graph
from fastrec.graph.validation.replay import largest_difference


class Changed(msgspec.Struct, frozen=True):
    """An operation that both histories have at the same place, and what differs: parents, shape, and so on."""

    first: str
    second: str
    what: tuple[str, ...]

    def __str__(self) -> str:
        names = self.first if self.first == self.second else f"{self.first} and {self.second}"
        return f"{names}: {', '.join(self.what)}"


class HistoryDiff(msgspec.Struct, frozen=True):
    """How two histories differ; false as a value if they ran the same operations.

    ``only_in_first`` and ``only_in_second`` are labels of operations that the other one lacks; ``changed`` are those
    that both have, with other parents, functions, parameters, shapes or dtypes. ``values`` are those whose saved values
    differ; these are to be expected for different inputs, and don't count as a difference.
    """

    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]
    changed: tuple[Changed, ...]
    values: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.only_in_first or self.only_in_second or self.changed)

    def __str__(self) -> str:
        if not self:
            return f"the same operations; {len(self.values)} saved values differ"
        lines = ["other operations:"]
        for title, entries in (
            ("only in the first", self.only_in_first),
            ("only in the second", self.only_in_second),
            ("changed", self.changed),
        ):
            lines += [f"    {title}: {entry}" for entry in entries[:20]]
            lines += [f"    {title}: {len(entries) - 20} more"] if len(entries) > 20 else []
        return "\n".join(lines)

    __repr__ = __str__


def diff_of(first: Graph, second: Graph) -> HistoryDiff:
    """Compare two graphs place by place: a site does not move when a branch elsewhere is or isn't taken."""
    first_ops, second_ops = _by_place(first), _by_place(second)
    first_places = {index: place for place, index in first_ops.items()}
    second_places = {index: place for place, index in second_ops.items()}
    changed, values = [], []
    for place, i in first_ops.items():
        j = second_ops.get(place)
        if j is None:
            continue
        op, other = first.ops[i], second.ops[j]
        what = _changes(op, other)
        if [first_places[p] for p in op.parents] != [second_places[p] for p in other.parents]:
            what.insert(0, "parents")
        if what:
            changed.append(Changed(first.label(i), second.label(j), tuple(what)))
        value, other_value = op.value, other.value  # read once, because they may be in files
        if value is not None and other_value is not None and largest_difference(value, other_value) != 0.0:
            values.append(first.label(i))
    return HistoryDiff(
        tuple(first.label(i) for place, i in first_ops.items() if place not in second_ops),
        tuple(second.label(j) for place, j in second_ops.items() if place not in first_ops),
        tuple(changed),
        tuple(values),
    )


_Place = tuple[str, str, str, str, int]
"""Kind, module pass, site and leaf of an operation, and its number among the operations that share all of these."""


def _by_place(graph: Graph) -> dict[_Place, int]:
    counts: Counter[tuple[str, str, str, str]] = Counter()
    by_place: dict[_Place, int] = {}
    for index in graph.order:
        op = graph.ops[index]
        kind, module, site, path = place = (op.kind, _module(op), op.call.site, op.path)
        counts[place] += 1
        by_place[kind, module, site, path, counts[place]] = index
    return by_place


def _module(op: CapturedOp) -> str:
    return "" if op.module is None else op.module.label


def _parameters(op: CapturedOp) -> list[str]:
    return [parameter.address for parameter in op.call.parameters]


def _changes(op: CapturedOp, other: CapturedOp) -> list[str]:
    compared = {
        "function": (op.call.layer_type, other.call.layer_type),
        "parameters": (_parameters(op), _parameters(other)),
        "shape": (op.shape, other.shape),
        "dtype": (op.dtype, other.dtype),
    }
    return [name for name, (a, b) in compared.items() if a != b]


def check_same_graph(old: Capture, new: Capture, *, remedy: str) -> None:
    """Raise GraphDifferenceError at the first operation that differs in function, parents, parameters or module."""
    for index, (old_op, new_op) in enumerate(zip_longest(old.ops, new.ops)):
        if old_op is None or new_op is None or _identity(old_op) != _identity(new_op):
            raise GraphDifferenceError(
                f"the model ran other operations than before; the first difference is number {index}: "
                f"{_describe(old, old_op)} before, {_describe(new, new_op)} now; {remedy}"
            )


def _identity(op: CapturedOp) -> tuple[object, ...]:
    """What has to be the same; sizes and numbers may depend on the inputs."""
    return op.kind, op.call.layer_type, op.path, op.address, op.parents, _parameters(op), _module(op)


def _describe(capture: Capture, op: CapturedOp | None) -> str:
    if op is None:
        return "nothing"
    parents = ", ".join(capture.ops[parent].call.label or capture.ops[parent].kind for parent in op.parents)
    name = op.call.label or f"{op.kind}{op.address}"
    return f"{name} at {op.call.site!r} from ({parents})"
