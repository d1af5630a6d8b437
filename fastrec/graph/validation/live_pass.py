"""A pass that is run again as a whole, on tensors that share memory as they did.

    for read in overwritten_reads(graph.ops, graph.order):
        read.read, read.replayed        # what a call read after a write through another view, and what it reads now

A value that was written through another view of its memory is not what any single call returns, so it can't be checked
by running single calls on copies of saved values. Here each function gets the tensors that earlier functions returned
in this run. So views are views again, and a write through one of them shows in the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from fastrec._torch.trees import leaves
from fastrec.graph.raw import CapturedCall, CapturedOp, Overwritten, Ref, Reference, filled
from fastrec.graph.tracking import storage_of
from fastrec.graph.validation.replay import (
    REFUSALS,
    UNINITIALISED,
    CannotReplay,
    Replayer,
    circumstances_of,
    copy_generator,
    parents_in,
)


class OverwrittenRead(NamedTuple):
    """A call that read a value after a write through another view: what it read, and what running again gives.

    ``shares_memory`` is whether the value shares memory with those of its writers when the pass is run again. Tensors
    that shared memory before the pass don't.
    """

    op: CapturedOp
    parent: int
    read: Tensor
    replayed: Tensor
    shares_memory: bool


def overwritten_reads(ops: Sequence[CapturedOp], order: Sequence[int]) -> Iterator[OverwrittenRead]:
    """All reads of values after writes through other views, with what they give in a pass that is run again."""
    if any(isinstance(how, Overwritten) for index in order for how in parents_in(ops[index].call).values()):
        yield from _LivePass(ops).run(order)


class _LivePass:
    """Runs all calls of a pass on live tensors."""

    def __init__(self, ops: Sequence[CapturedOp]) -> None:
        self._ops = ops
        self._saved = Replayer(ops)
        self._values: dict[int, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._other_tensors: dict[int, Tensor] = {}
        self._returned: dict[int, dict[str, Tensor]] = {}  # by call

    def run(self, order: Sequence[int]) -> Iterator[OverwrittenRead]:
        """Run everything again, and yield each read of a value that was overwritten."""
        for index in order:
            op = self._ops[index]
            for parent, how in parents_in(op.call).items():
                if isinstance(how, Overwritten) and how.value is not None and parent in self._values:
                    shares_memory = all(self._share_memory(parent, writer) for writer in how.written_by)
                    now = self._values[parent].detach().clone()
                    yield OverwrittenRead(op, parent, how.value, now, shares_memory)
            value = self._value(op)
            if value is None and (saved := op.value) is not None:
                value = saved.clone()
            if value is not None:
                self._values[index] = value
                if op.kind == "buffer":
                    self._buffers[op.address] = value

    def _share_memory(self, op: int, other: int) -> bool:
        storages = [storage_of(value) for i in (op, other) if (value := self._values.get(i)) is not None]
        return len(storages) == 2 and storages[0] is not None and storages[0] == storages[1]

    def _value(self, op: CapturedOp) -> Tensor | None:
        """The value of an operation, run again; None if the saved one has to stand in."""
        if op.kind == "buffer":
            return self._buffers.get(op.address)
        if op.kind != "op":
            return None
        if id(op.call) not in self._returned:
            self._returned[id(op.call)] = self._run(op.call)
        value = self._returned[id(op.call)].get(op.path)
        if op.call.layer_type in UNINITIALISED and value is not None and (saved := op.value) is not None:
            value.copy_(saved)
        return value

    def _run(self, call: CapturedCall) -> dict[str, Tensor]:
        """What a call returns, by path; empty if it can't be run, and the saved values have to stand in."""
        if not callable(call.func) or isinstance(call.func, nn.Module):
            return {}
        try:
            args = tuple([filled(item, self._tensor) for item in call.args])
            kwargs = {key: filled(item, self._tensor) for key, item in call.kwargs.items()}
            with circumstances_of(call):
                copy_generator(call, kwargs)
                out = call.func(*args, **kwargs)
        except (CannotReplay, *REFUSALS):
            return {}
        return dict(leaves(args[0] if out is None and args else out))

    def _tensor(self, reference: Reference) -> Tensor:
        if isinstance(reference, Ref | Overwritten):
            value = self._values.get(reference.op)
            return self._saved.value_of(reference) if value is None else value
        if id(reference) not in self._other_tensors:
            self._other_tensors[id(reference)] = self._saved.value_of(reference).clone()
        return self._other_tensors[id(reference)]
