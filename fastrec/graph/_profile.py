"""Where the time and the memory of a pass go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import msgspec

from fastrec._errors import OptionError
from fastrec.graph._graph import Graph
from fastrec.graph._history_show import readable_size
from fastrec.graph._raw import Call, ModuleCall, Op

_COLUMNS = ("seconds", "memory", "parameters", "calls")


class ProfileRow(msgspec.Struct):
    """One operation, or one module with all that ran inside of it.

    ``seconds`` are those of the functions alone, without Python around them; ``share`` is the part of all functions'
    time. ``memory`` is the size of all values computed, ``parameters`` that of the parameters used, in bytes.
    """

    name: str
    kind: str
    calls: int = 0
    seconds: float = 0.0
    share: float = 0.0
    memory: int = 0
    parameters: int = 0


class Profile(Sequence[ProfileRow]):
    """Rows from the most to the least; prints as a table."""

    def __init__(self, rows: Iterable[ProfileRow], sort: str) -> None:
        self.sort = sort
        self._rows = sorted(rows, key=lambda row: -getattr(row, sort))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[ProfileRow]:
        return iter(self._rows)

    @overload
    def __getitem__(self, place: int) -> ProfileRow: ...

    @overload
    def __getitem__(self, place: slice) -> Profile: ...

    def __getitem__(self, place: int | slice) -> ProfileRow | Profile:
        return Profile(self._rows[place], self.sort) if isinstance(place, slice) else self._rows[place]

    def __str__(self) -> str:
        width = max((len(row.name) for row in self._rows), default=4)
        kind = max((len(row.kind) for row in self._rows), default=4)
        head = f"{'name':<{width}}  {'kind':<{kind}}  {'calls':>5}  {'time':>10}  {'share':>6}  {'memory':>9}  params"
        lines = [
            f"{row.name:<{width}}  {row.kind:<{kind}}  {row.calls:>5}  {row.seconds * 1e3:>7.3f} ms  "
            f"{row.share:>6.1%}  {readable_size(row.memory):>9}  {readable_size(row.parameters)}"
            for row in self._rows
        ]
        return "\n".join([head, *lines])

    __repr__ = __str__


def profile_of(graph: Graph, by: str, sort: str) -> Profile:
    """The profile of a pass."""
    if by not in ("operation", "module"):
        raise OptionError(f"by={by!r} is not allowed; give 'operation' or 'module'")
    if sort not in _COLUMNS:
        raise OptionError(f"sort={sort!r} is not allowed; give one of {', '.join(map(repr, _COLUMNS))}")
    ops = [graph.ops[index] for index in graph.order if graph.ops[index].kind == "op"]
    rows = _by_operation(graph, ops) if by == "operation" else _by_module(graph, ops)
    total = sum(call.seconds for call in _calls(ops))
    for row in rows:
        row.share = row.seconds / total if total else 0.0
    return Profile(rows, sort)


def _calls(ops: Iterable[Op]) -> list[Call]:
    return list({id(op.call): op.call for op in ops}.values())


def _by_operation(graph: Graph, ops: Iterable[Op]) -> list[ProfileRow]:
    rows = []
    timed: set[int] = set()
    for op in ops:
        # A call that returned several values took its time once.
        seconds = 0.0 if id(op.call) in timed else op.call.seconds
        timed.add(id(op.call))
        size = sum(p.tensor.numel() * p.tensor.element_size() for p in op.call.parameters)
        rows.append(ProfileRow(graph.label(op.index), op.call.layer_type, 1, seconds, 0.0, op.nbytes, size))
    return rows


def _by_module(graph: Graph, ops: Iterable[Op]) -> list[ProfileRow]:
    rows: dict[str, ProfileRow] = {}
    sizes: dict[str, dict[int, int]] = {}
    for call in graph.submodule_calls:
        row = rows.setdefault(call.address, ProfileRow(call.address, call.kind))
        row.calls += 1
    timed: set[int] = set()
    for op in ops:
        seconds = 0.0 if id(op.call) in timed else op.call.seconds
        timed.add(id(op.call))
        for address in _around(op.module):
            rows[address].seconds += seconds
            rows[address].memory += op.nbytes
            for parameter in op.call.parameters:
                size = parameter.tensor.numel() * parameter.tensor.element_size()
                sizes.setdefault(address, {})[id(parameter.tensor)] = size
    for address, found in sizes.items():
        rows[address].parameters = sum(found.values())
    return list(rows.values())


def _around(call: ModuleCall | None) -> set[str]:
    """The addresses of all modules around an operation, each once."""
    found = set()
    while call is not None:
        if call.address:
            found.add(call.address)
        call = call.parent
    return found
