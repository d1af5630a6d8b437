"""Which values are kept, and how they are copied."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastrec._errors import UnsupportedTensorError
from fastrec._torch.internals import functorch_level, no_function_modes
from fastrec._torch.tensors import check_copyable
from fastrec.events.capture import CaptureSpec
from fastrec.graph.raw import CapturedOp, Readable
from fastrec.sinks._copying import parts_of, watch_gradient


class Everything:
    """Contains every operation."""

    def __contains__(self, index: object) -> bool:
        return True


class Store(Protocol):
    """Where values are written while the pass runs."""

    def put(self, name: str, value: Tensor) -> Readable:
        """Write a value."""


class Stream(NamedTuple):
    """Where values go as they appear, and whether they stay in memory, too."""

    store: Store
    in_memory: bool

    def send(self, op: CapturedOp) -> None:
        """Write what is held of an operation."""
        op.held = self._sent(f"values/{op.index}", op.held)
        op.held_transformed = self._sent(f"transformed/{op.index}", op.held_transformed)

    def all_of(self, ops: Iterable[CapturedOp]) -> None:
        """Write what is held of some operations."""
        for op in ops:
            self.send(op)

    def _sent(self, name: str, held: Tensor | Readable | None) -> Tensor | Readable | None:
        if not isinstance(held, Tensor):
            return held
        stored = self.store.put(name, held)
        return held if self.in_memory else stored


class Saver:
    """Keeps values of operations as a spec says."""

    def __init__(
        self, keep: Container[int], spec: CaptureSpec, gradients: dict[int, Tensor], stream: Stream | None = None
    ) -> None:
        self.keep = keep
        self._stream = stream
        self._spec = spec
        self._plain = spec.save_raw and not spec.keep_grad and spec.transform is None
        self._gradients = gradients
        self.keeps_any = keep != ()
        self._keeps_all = isinstance(keep, Everything)

    def save(self, op: CapturedOp, value: Tensor) -> None:
        """Keep a value if it is wanted."""
        if not self._keeps_all and op.index not in self.keep:
            return
        plain = type(value) is Tensor and value.layout == torch.strided and not value.is_quantized
        if not plain or functorch_level() is not None:
            reason = reason_not_saved(value)
            if reason:
                op.unsaved = reason
                return
        if self._plain:
            op.value = copied(value)
        else:
            parts = parts_of(value, self._spec)
            op.value = parts.get("activation")
            op.transformed = parts.get("transformed_activation")
            if not self._spec.keep_grad:
                op.value = None if op.value is None else copied(op.value)
                op.transformed = None if op.transformed is None else copied(op.transformed)
        if self._spec.save_gradient and value.requires_grad:
            watch_gradient(value, self._spec, self._gradients, op.index)

        if self._stream is not None:
            self._stream.send(op)

    def snapshot(self, value: Tensor) -> Tensor | None:
        """A copy of a value that is no operation's, if values are kept at all."""
        return copied(value) if self.keeps_any and not reason_not_saved(value) else None


def copied(value: Tensor) -> Tensor:
    """A detached copy that nobody else writes to."""
    with no_function_modes():
        if not torch.is_inference_mode_enabled():
            return value.detach().clone() if value.requires_grad else value.clone()
        # What is made in inference mode could not be saved for a backward pass by whoever reads it.
        with torch.inference_mode(False), torch.no_grad():
            return value.detach().clone()


def reason_not_saved(value: Tensor) -> str:
    """Why no right copy can be made of a value; nothing where it can."""
    if functorch_level() is not None:
        return "it was computed inside of a functorch transform (vmap, grad, jvp), whose values must not escape"
    try:
        check_copyable(value)
    except UnsupportedTensorError as error:
        return str(error)
    return ""
