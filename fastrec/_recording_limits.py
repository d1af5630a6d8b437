"""Which values can't be recorded as asked, so that a copy would be wrong or a gradient never come."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrec._errors import GradientError, UnsupportedTensorError
from fastrec.events.capture import CaptureSpec


def check_copyable(value: Tensor) -> None:
    """Refuse a tensor of which no right copy can be made."""
    reason = _reason_not_to_copy(value)
    if reason is not None:
        kind, remedy = reason
        raise UnsupportedTensorError(f"{kind} can't be recorded as it is; {remedy}")


def _reason_not_to_copy(value: Tensor) -> tuple[str, str] | None:
    dense = "leave it out with the predicate, or record a dense tensor made from it"
    cls = type(value)
    # A subclass with a dispatch of its own decides what its memory means: a shard, a fake, a batch of shapes.
    if cls.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"a {cls.__module__}.{cls.__qualname__}", (
            "leave it out with the predicate, or record where it is a plain tensor (after full_tensor(), to_local())"
        )
    if value.is_nested:
        return "a nested tensor", "leave it out with the predicate, or record where it is padded"
    if value.is_quantized:
        return f"a quantized tensor ({value.dtype})", "leave it out with the predicate, or record it dequantized"
    if value.layout != torch.strided:
        return f"a tensor of layout {value.layout}", dense
    if value.device.type == "meta":
        return "a meta tensor, which has no values,", "run the model on a device that computes"
    if value.dtype in _SUB_BYTE:
        return f"a tensor of {value.dtype}", dense
    return None


_SUB_BYTE = frozenset(
    found
    for name in (f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8))
    if isinstance(found := getattr(torch, name, None), torch.dtype)
)


def check_gradients(value: Tensor, spec: CaptureSpec) -> None:
    """Refuse gradients where none can flow.

    With keep_grad a floating value that requires no gradient is kept all the same: behind a frozen backbone it is the
    input of what is trained, and refusing it would forbid probes and distillation teachers.
    """
    for name, asked in (("keep_grad", spec.keep_grad), ("save_gradient", spec.save_gradient)):
        if not asked:
            continue
        if not torch.is_grad_enabled():
            where = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
            raise GradientError(
                f"CaptureSpec({name}=True) met a value that was computed under torch.{where}, where no graph is "
                f"built; run the pass with gradients on, or drop {name}"
            )
        if not (value.is_floating_point() or value.is_complex()):
            raise GradientError(
                f"CaptureSpec({name}=True) met a value of {value.dtype}, through which no gradient flows; select "
                f"floating values only, with dtype(...) for instance, or drop {name} there"
            )
    if spec.keep_grad and value.is_inference():
        raise GradientError(
            "CaptureSpec(keep_grad=True) met a tensor made under torch.inference_mode, which can't be part of a graph; "
            "make it under torch.no_grad, or clone it outside of inference mode"
        )
    if spec.save_gradient and not value.requires_grad:
        raise GradientError(
            "CaptureSpec(save_gradient=True) met a value that does not require a gradient, so none will ever reach "
            "it; select values behind trainable parameters, or drop save_gradient"
        )
