"""How tensors are copied: the fastest copy of plain bytes, and the tensors that a spec makes of a value.

A recorded value has to be copied, because nobody promises to leave it alone: the next op may write into it in place,
the model may return a view of a buffer that it uses again, and a rollout loop reuses its observation tensor. A record
that shared such memory would change afterwards, and nothing would show it. (The one exception is in
``session/pass_batch.py``: values that nobody else can reach any more.)
"""

from __future__ import annotations

import ctypes
from typing import Protocol

import torch
from torch import Tensor

from fastrec._errors import OptionError
from fastrec._torch.collectives import arrived
from fastrec._torch.internals import no_function_modes
from fastrec._torch.tensors import check_copyable
from fastrec.events.capture import CaptureSpec, kept_dtype
from fastrec.recording._source import Part

# PYFUNCTYPE keeps the GIL: releasing it and taking it again would cost more than the copy, and would let another thread
# write into the value in between.
memcpy = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
    ctypes.cast(ctypes.memmove, ctypes.c_void_p).value or 0
)


def is_its_bytes(value: Tensor) -> bool:
    """Whether a copy of a value's bytes is a copy of the value: no strides, no lazy negation, no subclass."""
    return value.__class__ is Tensor and value.is_contiguous() and not value.is_neg()


class Bytewise(Protocol):
    """A column that can skip the question ``is_its_bytes``, because its caller knows the answer."""

    def append_bytes(self, value: Tensor) -> int:
        """Copy the bytes of a value now, and return its row."""

    def discard(self, row: int) -> None:
        """Forget a row."""


class BytesCopier:
    """The rows of another column, for values that are known to be their bytes.

    A tap has compared a value with an earlier one in every respect when it gets here, so the question has one answer
    for all its values, and asking it again would take longer than the copy.
    """

    __slots__ = ("append", "discard")

    def __init__(self, rows: Bytewise) -> None:
        self.append = rows.append_bytes
        self.discard = rows.discard


def parts_of(value: Tensor, spec: CaptureSpec) -> dict[Part, Tensor]:
    """The tensors that a spec makes of a value: attached clones with ``keep_grad``, else tensors still to be copied."""
    parts: dict[Part, Tensor] = {}
    if spec.save_raw:
        parts["activation"] = _attached_copy(value, spec) if spec.keep_grad else arrived(value)
    if spec.transform is not None:
        result = _transform(value, spec)
        parts["transformed_activation"] = _attached_copy(result, spec) if spec.keep_grad else result
    return parts


def _attached_copy(value: Tensor, spec: CaptureSpec) -> Tensor:
    with no_function_modes():
        moved = value.to(device=spec.device, dtype=kept_dtype(spec, value.dtype))
        return value.clone() if moved is value else moved


def _transform(value: Tensor, spec: CaptureSpec) -> Tensor:
    assert spec.transform is not None
    with no_function_modes(), torch.set_grad_enabled(spec.keep_grad):
        argument = value if spec.keep_grad else value.detach()
        if argument.is_inference():
            # It has no version that could show that the transform wrote into the model's tensor, so it gets a copy.
            argument = argument.clone()
        version = 0 if argument.is_inference() else argument._version
        result = spec.transform(argument)
        if isinstance(result, Tensor):
            result = arrived(result)
        name = getattr(spec.transform, "__qualname__", None) or repr(spec.transform)
        if not isinstance(result, Tensor):
            raise OptionError(f"the transform {name} returned {result!r:.60}; it has to return a tensor")
        if not argument.is_inference() and argument._version != version:
            raise OptionError(
                f"the transform {name} wrote into its input, which is the model's own tensor; use functions that "
                "return a new tensor (relu instead of relu_)"
            )
    check_copyable(result)
    return result


def watch_gradient(value: Tensor, spec: CaptureSpec, gradients: dict[int, Tensor], row: int) -> None:
    """Keep the gradient that reaches a value in ``gradients[row]``; several backward passes add up."""

    def keep(gradient: Tensor) -> None:
        with no_function_modes(), torch.no_grad():
            copy = gradient.detach().clone().to(device=spec.device, dtype=kept_dtype(spec, gradient.dtype))
            total = gradients.get(row)
            gradients[row] = copy if total is None else total + copy

    with no_function_modes():
        value.register_hook(keep)  # type: ignore[no-untyped-call]
