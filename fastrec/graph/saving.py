"""Which values of a pass are saved, how they are copied, and where they go."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from functools import partial

import msgspec
import torch
from torch import Tensor

from fastrec._errors import GradientError, OptionError, UnsupportedTensorError
from fastrec._torch.internals import functorch_level, no_function_modes
from fastrec._torch.tensors import check_copyable, run_outside_dispatch_modes, run_outside_saved_tensors_hooks
from fastrec.events.capture import CaptureSpec
from fastrec.graph.raw import CapturedOp
from fastrec.graph.tensor_file import LazyTensor, TensorFile
from fastrec.sinks._copying import parts_of, watch_gradient


class Everything(Container[int]):
    """Contains every operation."""

    def __contains__(self, index: object) -> bool:
        return True


def check_gradients(*, train_mode: bool, save_gradients: bool = False) -> None:
    """GradientError if values should stay attached to autograd where it builds no graph."""
    if (train_mode or save_gradients) and not torch.is_grad_enabled():
        raise GradientError(
            f"{'train_mode' if train_mode else 'save_gradients'}=True under torch.no_grad or torch.inference_mode, "
            "where autograd builds no graph for a backward pass; log with gradients enabled"
        )


class Stream(msgspec.Struct, frozen=True):
    """A file to which values go as they appear; ``in_memory`` keeps them in memory too."""

    file: TensorFile
    in_memory: bool

    def send(self, op: CapturedOp) -> None:
        """Write what was saved of an operation."""
        op.stored_value = self._sent(f"values/{op.index}", op.stored_value)
        op.stored_transform = self._sent(f"transformed/{op.index}", op.stored_transform)

    def send_all(self, ops: Iterable[CapturedOp]) -> None:
        """Write what was saved of some operations."""
        for op in ops:
            self.send(op)

    def _sent(self, name: str, stored: Tensor | LazyTensor | None) -> Tensor | LazyTensor | None:
        if not isinstance(stored, Tensor):
            return stored
        in_file = self.file.put(name, stored)
        return stored if self.in_memory else in_file


class SaveRequest(msgspec.Struct, frozen=True):
    """Which operations to save, by index, how, and in which file if not in memory alone."""

    which: Container[int] = ()
    spec: CaptureSpec = CaptureSpec()
    stream: Stream | None = None


class Saver:
    """Saves values as a request says; the gradients of later backward passes go to ``gradients``."""

    def __init__(self, request: SaveRequest, gradients: dict[int, Tensor]) -> None:
        self.saves_any = request.which != ()
        self._which = request.which
        self._saves_all = isinstance(request.which, Everything)
        self._spec = request.spec
        self._only_copies = request.spec.save_raw and not request.spec.keep_grad and request.spec.transform is None
        self._stream = request.stream
        self._gradients = gradients

    def save(self, op: CapturedOp, value: Tensor) -> None:
        """Save a value if the request includes it."""
        if not self._saves_all and op.index not in self._which:
            return
        # Nearly all values are plain, and need not be examined any further.
        is_plain = type(value) is Tensor and value.layout == torch.strided and not value.is_quantized
        if not is_plain or functorch_level() is not None:
            op.unsaved = _reason_not_to_copy(value)
            if op.unsaved:
                return
        if self._only_copies:
            op.value = copied(value)
        else:
            parts = run_outside_dispatch_modes(partial(self._parts, op), value)
            op.value = parts.get("activation")
            op.transformed = parts.get("transformed_activation")
            if not self._spec.keep_grad:
                op.value = None if op.value is None else copied(op.value)
                op.transformed = None if op.transformed is None else copied(op.transformed)
        if self._spec.save_gradient and value.requires_grad:
            watch_gradient(value, self._spec, self._gradients, op.index)
        if self._stream is not None:
            self._stream.send(op)

    def _parts(self, op: CapturedOp, value: Tensor) -> Mapping[str, Tensor]:
        make = partial(parts_of, spec=self._spec)
        if self._spec.transform is None:
            return make(value)
        try:
            return run_outside_saved_tensors_hooks(make, value) if self._spec.keep_grad else make(value)
        except Exception as error:  # the user's function may raise anything
            raise OptionError(
                f"activation_postfunc failed for the value of {op.call.label or op.kind} at {op.call.site!r}, of shape "
                f"{op.shape}, with {type(error).__name__}: {error}"
            ) from error

    def snapshot(self, value: Tensor) -> Tensor | None:
        """A copy of a value that belongs to no operation, None where no values are saved at all."""
        return copied(value) if self.saves_any and not _reason_not_to_copy(value) else None


def copied(value: Tensor) -> Tensor:
    """A detached copy in memory of its own."""
    return run_outside_dispatch_modes(_copied, value)


def _copied(value: Tensor) -> Tensor:
    with no_function_modes():
        if not torch.is_inference_mode_enabled():
            return value.detach().clone() if value.requires_grad else value.clone()
        # A tensor made in inference mode could not be used in a backward pass by the user who reads it.
        with torch.inference_mode(False), torch.no_grad():
            return value.detach().clone()


def _reason_not_to_copy(value: Tensor) -> str:
    """Why a value can't be copied faithfully; empty where it can."""
    if functorch_level() is not None:
        return "it was computed inside a functorch transform (vmap, grad, jvp), whose values must not escape"
    try:
        check_copyable(value)
    except UnsupportedTensorError as error:
        return str(error)
    return ""
