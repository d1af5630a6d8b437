"""Where two histories differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import zip_longest

import msgspec

from fastrec._errors import GraphDifferenceError
from fastrec.graph.raw import Capture, CapturedOp
from fastrec.graph.structure import Graph
from fastrec.graph.validation.replay import largest_difference

_Place = tuple[str, str, str, int]
"""Kind, site, leaf, and the how-manieth operation there."""


class Changed(msgspec.Struct, frozen=True):
    """An operation that both histories have at one place, and what is not the same: parents, shape, and so on."""

    first: str
    second: str
    what: tuple[str, ...]

    def __str__(self) -> str:
        names = self.first if self.first == self.second else f"{self.first} and {self.second}"
        return f"{names}: {', '.join(self.what)}"


class HistoryDiff(msgspec.Struct, frozen=True):
    """What two histories do not share; false as a value where they ran the same operations.

    ``only_in_first`` and ``only_in_second`` are labels of operations that the other has not; ``changed`` are those that
    both have, with other parents, functions, parameters, shapes or dtypes. ``values`` are those whose saved values
    differ, which two inputs make of one graph, and does not count as a difference of it.
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
    """Compare two graphs, place by place: a site does not move when a branch elsewhere is or isn't taken."""
    here, there = _places(first), _places(second)
    of_first = {index: place for place, index in here.items()}
    of_second = {index: place for place, index in there.items()}
    changed, values = [], []
    for place, i in here.items():
        j = there.get(place)
        if j is None:
            continue
        one, other = first.ops[i], second.ops[j]
        what = _changes(one, other)
        if [of_first[p] for p in one.parents] != [of_second[p] for p in other.parents]:
            what.insert(0, "parents")
        if what:
            changed.append(Changed(first.label(i), second.label(j), tuple(what)))
        if one.value is not None and other.value is not None and largest_difference(one.value, other.value) != 0.0:
            values.append(first.label(i))
    return HistoryDiff(
        tuple(first.label(i) for place, i in here.items() if place not in there),
        tuple(second.label(j) for place, j in there.items() if place not in here),
        tuple(changed),
        tuple(values),
    )


def _places(graph: Graph) -> dict[_Place, int]:
    seen: Counter[tuple[str, str, str]] = Counter()
    found: dict[_Place, int] = {}
    for index in graph.order:
        op = graph.ops[index]
        module = op.module.label if op.module is not None else ""
        place = (f"{op.kind} {module}", op.call.site, op.path)
        seen[place] += 1
        kind, site, path = place
        found[kind, site, path, seen[place]] = index
    return found


def _changes(one: CapturedOp, other: CapturedOp) -> list[str]:
    facts = {
        "function": (one.call.layer_type, other.call.layer_type),
        "parameters": (_addresses(one), _addresses(other)),
        "shape": (one.shape, other.shape),
        "dtype": (one.dtype, other.dtype),
    }
    return [name for name, (a, b) in facts.items() if a != b]


def _addresses(op: CapturedOp) -> Iterable[str]:
    return [parameter.address for parameter in op.call.parameters]


def check_same_graph(before: Capture, now: Capture, *, remedy: str) -> None:
    """Raise GraphDifferenceError at the first operation that differs in function, parents, parameters or module."""
    for old, new in zip_longest(before.ops, now.ops):
        if old is None or new is None or facts(old) != facts(new):
            raise GraphDifferenceError(
                f"the model ran other operations than before; the first difference is number {_number(old, new)}: "
                f"{told(before, old)} before, {told(now, new)} now; {remedy}"
            )


def facts(op: CapturedOp) -> dict[str, object]:
    """What has to be the same; sizes and numbers may change with the inputs."""
    return {
        "function": (op.kind, op.call.layer_type, op.path),
        "address": op.address,
        "parents": op.parents,
        "parameters": tuple(parameter.address for parameter in op.call.parameters),
        "module": op.module.label if op.module is not None else "",
    }


def told(capture: Capture, op: CapturedOp | None) -> str:
    """An operation in a message."""
    if op is None:
        return "nothing"
    parents = ", ".join(capture.ops[parent].call.label or capture.ops[parent].kind for parent in op.parents)
    name = op.call.label or f"{op.kind}{op.address}"
    return f"{name} at {op.call.site!r} from ({parents})"


def _number(old: CapturedOp | None, new: CapturedOp | None) -> int:
    op = old if old is not None else new
    assert op is not None
    return op.index
