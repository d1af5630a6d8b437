"""Modules, parameters and buffers of a history, and profiles of time and memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, overload

import msgspec
import torch

from fastrec._errors import OptionError
from fastrec.graph.raw import CapturedOp, ModuleCall, Parameter
from fastrec.graph.show import readable_size
from fastrec.graph.structure import Graph


class ModulePass(msgspec.Struct, frozen=True):
    """One call of a module: what ran in it and what went in and out, by label.

    ``operations`` are all that ran in it, in order, including those in its submodules.
    """

    label: str
    parent: str | None
    children: tuple[str, ...]
    operations: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class ModuleEntry(msgspec.Struct, frozen=True):
    """A module that ran: its class, its passes, and the parameters in it and below."""

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
        return tuple(label for module_pass in self.passes for label in module_pass.operations)


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


def modules_of(graph: Graph, parameters: Iterable[Parameter]) -> dict[str, ModuleEntry]:
    """The modules that ran, by address."""
    operations: dict[int, list[int]] = {}
    for index in graph.order:
        call = graph.ops[index].module if graph.ops[index].kind == "op" else None
        while call is not None:
            operations.setdefault(id(call), []).append(index)
            call = call.parent
    children: dict[int, list[str]] = {}
    for call in graph.submodule_calls:
        if call.parent is not None:
            children.setdefault(id(call.parent), []).append(call.label)
    passes: dict[str, list[ModulePass]] = {}
    for call in graph.submodule_calls:
        module_pass = ModulePass(
            label=call.label,
            parent=call.parent.label if call.parent is not None and call.parent.address else None,
            children=tuple(children.get(id(call), ())),
            operations=_labels(graph, operations.get(id(call), ())),
            inputs=_labels(graph, call.entered),
            outputs=_labels(graph, call.exited),
        )
        passes.setdefault(call.address, []).append(module_pass)
    types = {call.address: call.kind for call in graph.submodule_calls}
    addresses = [parameter.address for parameter in parameters]
    return {
        address: ModuleEntry(
            address,
            types[address],
            tuple(module_passes),
            tuple(name for name in addresses if name.startswith(f"{address}.")),
        )
        for address, module_passes in passes.items()
    }


def parameters_of(graph: Graph, parameters: Iterable[Parameter]) -> dict[str, ParameterEntry]:
    """The parameters, by address."""
    users: dict[int, list[int]] = {}
    for index in graph.order:
        for parameter in graph.ops[index].call.parameters:
            users.setdefault(id(parameter.tensor), []).append(index)
    return {
        parameter.address: ParameterEntry(
            address=parameter.address,
            shape=tuple(parameter.tensor.shape),
            dtype=parameter.tensor.dtype,
            requires_grad=parameter.tensor.requires_grad,
            fsize=parameter.nbytes,
            used_by=_labels(graph, users.get(id(parameter.tensor), ())),
        )
        for parameter in parameters
    }


def buffers_of(graph: Graph) -> dict[str, BufferEntry]:
    """The buffers that were read, by address."""
    reads: dict[str, list[int]] = {}
    for index in graph.order:
        if graph.ops[index].kind == "buffer":
            reads.setdefault(graph.ops[index].address, []).append(index)
    buffers = {}
    for address, indices in reads.items():
        first = graph.ops[indices[0]]
        readers = {child for index in indices for child in graph.children.get(index, ())}
        writers = {op for written, op in graph.capture.buffer_writes if written == address}
        buffers[address] = BufferEntry(
            address=address,
            shape=first.shape,
            dtype=first.dtype,
            fsize=first.nbytes,
            reads=_labels(graph, indices),
            used_by=_labels(graph, sorted(readers)),
            written_by=_labels(graph, sorted(writers)),
        )
    return buffers


def _labels(graph: Graph, indices: Iterable[int]) -> tuple[str, ...]:
    return tuple(graph.label(index) for index in indices if index in graph.positions)


ProfileBy = Literal["operation", "module"]

_SORTABLE = ("seconds", "memory", "parameters", "calls")


class ProfileRow(msgspec.Struct):
    """One operation, or one module with everything that ran inside it.

    ``seconds`` is the time spent in functions of torch, without the Python code around them, and ``share`` is that time
    as a fraction of the total. ``memory`` is the size of all values computed, and ``parameters`` that of the parameters
    used, in bytes.
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
    def __getitem__(self, position: int) -> ProfileRow: ...
    @overload
    def __getitem__(self, position: slice) -> Profile: ...
    def __getitem__(self, position: int | slice) -> ProfileRow | Profile:
        return Profile(self._rows[position], self.sort) if isinstance(position, slice) else self._rows[position]

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


def profile_of(graph: Graph, by: ProfileBy, sort: str) -> Profile:
    """The profile of a pass."""
    if by not in ("operation", "module"):
        raise OptionError(f"by={by!r} is not allowed; give 'operation' or 'module'")
    if sort not in _SORTABLE:
        raise OptionError(f"sort={sort!r} is not allowed; give one of {', '.join(map(repr, _SORTABLE))}")
    ops = [graph.ops[index] for index in graph.order if graph.ops[index].kind == "op"]
    rows = _rows_by_operation(graph, ops) if by == "operation" else _rows_by_module(graph.submodule_calls, ops)
    total = sum(seconds for _, seconds in _timed(ops))
    for row in rows:
        row.share = row.seconds / total if total else 0.0
    return Profile(rows, sort)


def _timed(ops: Iterable[CapturedOp]) -> Iterator[tuple[CapturedOp, float]]:
    """Operations with their seconds; a call that returned several values took its time once."""
    timed: set[int] = set()
    for op in ops:
        yield op, 0.0 if id(op.call) in timed else op.call.seconds
        timed.add(id(op.call))


def _rows_by_operation(graph: Graph, ops: Iterable[CapturedOp]) -> list[ProfileRow]:
    return [
        ProfileRow(
            name=graph.label(op.index),
            kind=op.call.layer_type,
            calls=1,
            seconds=seconds,
            memory=op.nbytes,
            parameters=sum(parameter.nbytes for parameter in op.call.parameters),
        )
        for op, seconds in _timed(ops)
    ]


def _rows_by_module(calls: Iterable[ModuleCall], ops: Iterable[CapturedOp]) -> list[ProfileRow]:
    rows: dict[str, ProfileRow] = {}
    for call in calls:
        rows.setdefault(call.address, ProfileRow(call.address, call.kind)).calls += 1
    sizes: dict[str, dict[int, int]] = {}  # a parameter that is used twice counts once
    for op, seconds in _timed(ops):
        for address in {call.address for call in op.modules_around}:  # once each, even if a module calls itself
            rows[address].seconds += seconds
            rows[address].memory += op.nbytes
            for parameter in op.call.parameters:
                sizes.setdefault(address, {})[id(parameter.tensor)] = parameter.nbytes
    for address, by_parameter in sizes.items():
        rows[address].parameters = sum(by_parameter.values())
    return list(rows.values())
