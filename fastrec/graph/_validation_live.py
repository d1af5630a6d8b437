"""Running a whole pass again with its memory shared as it was, to see what in-place writes did to other views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastrec._torch.trees import leaves
from fastrec.graph._arguments import filled
from fastrec.graph._raw import Call, Constant, Op, Parameter, Ref, Stale
from fastrec.graph._validation_replay import REFUSALS, UNINITIALISED, CannotReplay, Replayer, as_it_was, parents_in


class StaleRead:
    """A call that read a value which another view had written to: what it read, and what running again gives."""

    def __init__(self, op: Op, parent: int, read: Tensor, found: Tensor) -> None:
        self.op = op
        self.parent = parent
        self.read = read
        self.found = found


def stale_reads(ops: Sequence[Op], order: Sequence[int]) -> Iterator[StaleRead]:
    """All reads of values that were written through other views, each run again from the roots of the pass."""
    if any(isinstance(how, Stale) for index in order for how in parents_in(ops[index].call).values()):
        yield from _LivePass(ops).run(order)


class _LivePass:
    """The tensors of a pass that is run again."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self._ops = ops
        self._saved = Replayer(ops)
        self._live: dict[int, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._others: dict[int, Tensor] = {}
        self._done: dict[int, dict[str, Tensor]] = {}  # what each call returned

    def run(self, order: Sequence[int]) -> Iterator[StaleRead]:
        for index in order:
            op = self._ops[index]
            for parent, how in parents_in(op.call).items():
                if isinstance(how, Stale) and how.value is not None and parent in self._live:
                    yield StaleRead(op, parent, how.value, self._live[parent].detach().clone())
            value = self._value(op)
            if value is None and op.value is not None:
                value = op.value.clone()
            if value is not None:
                self._live[index] = value
                if op.kind == "buffer":
                    self._buffers[op.address] = value

    def _value(self, op: Op) -> Tensor | None:
        """The value of an operation, run again; None where the saved one is to stand in."""
        if op.kind == "buffer":
            return self._buffers.get(op.address)
        if op.kind != "op":
            return None
        if id(op.call) not in self._done:
            self._done[id(op.call)] = self._call(op.call)
        value = self._done[id(op.call)].get(op.path)
        if op.call.layer_type in UNINITIALISED and value is not None and op.value is not None:
            value.copy_(op.value)
        return value

    def _call(self, call: Call) -> dict[str, Tensor]:
        """What a call returns; nothing where it cannot be run, and the saved values stand in."""
        if not callable(call.func) or isinstance(call.func, torch.nn.Module):
            return {}
        try:
            args = tuple([filled(item, self._tensor) for item in call.args])
            kwargs = {key: filled(item, self._tensor) for key, item in call.kwargs.items()}
            with as_it_was(call, kwargs):
                out = call.func(*args, **kwargs)
        except (CannotReplay, *REFUSALS):
            return {}
        return dict(leaves(args[0] if out is None and args else out))

    def _tensor(self, reference: Ref | Stale | Parameter | Constant) -> Tensor:
        if isinstance(reference, Ref | Stale):
            if reference.op in self._live:
                return self._live[reference.op]
            return self._saved.value_of(reference)
        if id(reference) not in self._others:
            self._others[id(reference)] = self._saved.value_of(reference).clone()
        return self._others[id(reference)]
