"""Modules, parameters and buffers of a history."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import torch

from fastrec.graph._graph import Graph
from fastrec.graph._raw import ModuleCall, Parameter


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
