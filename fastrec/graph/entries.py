"""Modules, parameters and buffers of a history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import msgspec
import torch

from fastrec._errors import OptionError
from fastrec.graph.raw import CapturedCall, CapturedOp, ModuleCall, Parameter
from fastrec.graph.show import readable_size
from fastrec.graph.structure import Graph


class ModulePass(msgspec.Struct, frozen=True):
    """One call of a module: what ran in it and what went in and out, by label.

    ``operations`` are all that ran in it, in order, those inside of its submodules included.
    """

    label: str
    parent: str | None
    children: tuple[str, ...]
    operations: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class ModuleEntry(msgspec.Struct, frozen=True):
    """A module that ran: its class, its passes and the parameters in it and below."""

    address: str
    module_type: str
    passes: tuple[ModulePass, ...]
    parameters: tuple[str, ...]

    @property
    def num_passes(self) -> int:
        """How often it was called."""
        return len(self.passes)

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations of all its passes."""
        return tuple(label for each in self.passes for label in each.operations)


class ParameterEntry(msgspec.Struct, frozen=True):
    """A parameter of the model; ``used_by`` are the operations that read it."""

    address: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    fsize: int
    used_by: tuple[str, ...]

    @property
    def num_params(self) -> int:
        """How many numbers it holds."""
        return self.fsize // self.dtype.itemsize


class BufferEntry(msgspec.Struct, frozen=True):
    """A buffer that was read; ``reads`` are its layers, one for each value that it had.

    ``used_by`` are the operations that read it, ``written_by`` those that changed it.
    """

    address: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    fsize: int
    reads: tuple[str, ...]
    used_by: tuple[str, ...]
    written_by: tuple[str, ...]


def modules_of(graph: Graph, names: Sequence[str]) -> dict[str, ModuleEntry]:
    """The modules that ran, by address; ``names`` are the addresses of all parameters."""
    inside: dict[int, list[int]] = {}
    children: dict[int, list[str]] = {}
    for index in graph.order:
        op = graph.ops[index]
        call = op.module if op.kind == "op" else None
        while call is not None:
            inside.setdefault(id(call), []).append(index)
            call = call.parent
    for call in graph.submodule_calls:
        if call.parent is not None:
            children.setdefault(id(call.parent), []).append(call.label)
    passes: dict[str, list[ModulePass]] = {}
    for call in graph.submodule_calls:
        passes.setdefault(call.address, []).append(
            ModulePass(
                call.label,
                call.parent.label if call.parent is not None and call.parent.address else None,
                tuple(children.get(id(call), ())),
                _labels(graph, inside.get(id(call), ())),
                _labels(graph, call.entered),
                _labels(graph, call.exited),
            )
        )
    kinds: dict[str, ModuleCall] = {call.address: call for call in graph.submodule_calls}
    return {
        address: ModuleEntry(
            address, kinds[address].kind, tuple(found), tuple(n for n in names if n.startswith(f"{address}."))
        )
        for address, found in passes.items()
    }


def parameters_of(graph: Graph, parameters: Iterable[Parameter]) -> dict[str, ParameterEntry]:
    """The parameters, by address."""
    used: dict[int, list[int]] = {}
    for index in graph.order:
        for parameter in graph.ops[index].call.parameters:
            used.setdefault(id(parameter.tensor), []).append(index)
    return {
        p.address: ParameterEntry(
            p.address,
            tuple(p.tensor.shape),
            p.tensor.dtype,
            p.tensor.requires_grad,
            p.tensor.numel() * p.tensor.element_size(),
            _labels(graph, used.get(id(p.tensor), ())),
        )
        for p in parameters
    }


def buffers_of(graph: Graph) -> dict[str, BufferEntry]:
    """The buffers that were read, by address."""
    reads: dict[str, list[int]] = {}
    for index in graph.order:
        if graph.ops[index].kind == "buffer":
            reads.setdefault(graph.ops[index].address, []).append(index)
    found = {}
    for address, indices in reads.items():
        op = graph.ops[indices[0]]
        readers = sorted({child for index in indices for child in graph.children.get(index, ())})
        writers = {op for written, op in graph.capture.buffer_writes if written == address}
        found[address] = BufferEntry(
            address,
            op.shape,
            op.dtype,
            op.nbytes,
            _labels(graph, indices),
            _labels(graph, readers),
            _labels(graph, sorted(writers)),
        )
    return found


def _labels(graph: Graph, indices: Iterable[int]) -> tuple[str, ...]:
    return tuple(graph.label(index) for index in indices if index in graph.positions)


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


def _calls(ops: Iterable[CapturedOp]) -> list[CapturedCall]:
    return list({id(op.call): op.call for op in ops}.values())


def _by_operation(graph: Graph, ops: Iterable[CapturedOp]) -> list[ProfileRow]:
    rows = []
    timed: set[int] = set()
    for op in ops:
        # A call that returned several values took its time once.
        seconds = 0.0 if id(op.call) in timed else op.call.seconds
        timed.add(id(op.call))
        size = sum(p.tensor.numel() * p.tensor.element_size() for p in op.call.parameters)
        rows.append(ProfileRow(graph.label(op.index), op.call.layer_type, 1, seconds, 0.0, op.nbytes, size))
    return rows


def _by_module(graph: Graph, ops: Iterable[CapturedOp]) -> list[ProfileRow]:
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
