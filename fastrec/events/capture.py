"""How a kept value is copied: the user's ``CaptureSpec``, and what gradients and dtypes it implies.

A predicate answers with a spec, or with True, which means the recorder's default (``Recorder(capture=...)``). Sinks
read from the spec which tensors they have to keep of a value; the copying itself is in ``sinks/_copying.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import torch

from fastrec._errors import GradientError, OptionError, did_you_mean


class CaptureSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a kept value is copied: its dtype, its device, with or without gradients, transformed or raw.

    >>> import torch
    >>> from fastrec import CaptureSpec
    >>> CaptureSpec(dtype=torch.bfloat16, device="cpu")
    CaptureSpec(dtype=torch.bfloat16, device='cpu')

    Arguments:
        save_activation: keep the tensor; False keeps its context alone.
        save_metadata: keep the context of a value whose tensor is not kept.
        keep_grad: keep an attached clone, through which a loss can train the model.
        dtype: a floating or complex dtype, or its name ("bfloat16"), to cast floating or complex values to; None keeps
            the value's own.
        device: a device to copy to, "cpu" for instance; None keeps the value where it is.
        transform: a function tensor -> tensor (pooling, a projection); its result is
            ``record.transformed_activation``.
        save_raw: with a transform, keep the untransformed value too.
        save_gradient: keep the gradient that reaches this value in a backward pass, as ``record.gradient``.

    Raises OptionError where two fields contradict each other.
    """

    save_activation: bool = True
    save_metadata: bool = True
    keep_grad: bool = False
    dtype: torch.dtype | None = None
    device: torch.device | str | int | None = None
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None
    save_raw: bool = True
    save_gradient: bool = False

    def __post_init__(self) -> None:
        for name in ("save_activation", "save_metadata", "keep_grad", "save_raw", "save_gradient"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"CaptureSpec({name}={getattr(self, name)!r}): give True or False")
        if isinstance(self.dtype, str) and isinstance(
            dtype := vars(torch).get(self.dtype.removeprefix("torch.")), torch.dtype
        ):
            msgspec.structs.force_setattr(self, "dtype", dtype)
        if self.dtype is not None and not isinstance(self.dtype, torch.dtype):
            raise OptionError(
                f"CaptureSpec(dtype={self.dtype!r}): give a torch.dtype such as torch.bfloat16, its name, or None"
            )
        if self.keep_grad and self.dtype is not None and not (self.dtype.is_floating_point or self.dtype.is_complex):
            raise OptionError(
                f"CaptureSpec(keep_grad=True, dtype={self.dtype}): gradients flow through floating and complex "
                "dtypes only; drop one of the two"
            )
        if self.transform is not None and not callable(self.transform):
            raise OptionError(f"CaptureSpec(transform={self.transform!r}): give a function tensor -> tensor, or None")
        if not self.save_raw and self.transform is None:
            raise OptionError("CaptureSpec(save_raw=False) keeps nothing without a transform; give transform=...")
        if self.device is not None:
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise OptionError(f"CaptureSpec(device={self.device!r}): {error}") from None
        self._check_keeps_a_tensor()

    def _check_keeps_a_tensor(self) -> None:
        for name in ("keep_grad", "save_gradient", "transform"):
            if not self.save_activation and getattr(self, name):
                raise OptionError(
                    f"CaptureSpec(save_activation=False) keeps no tensor, so {name} has no effect; drop one of the two"
                )

    def __repr__(self) -> str:
        changes = [
            f"{name}={getattr(self, name)!r}"
            for name, default in zip(self.__struct_fields__, self.__struct_defaults__, strict=True)
            if getattr(self, name) != default
        ]
        return f"CaptureSpec({', '.join(changes)})"

    @property
    def is_plain(self) -> bool:
        """Whether the value is copied as it is: no cast, no move, no transform, no gradient."""
        return (
            self.save_activation
            and not self.keep_grad
            and not self.save_gradient
            and self.dtype is None
            and self.device is None
            and self.transform is None
        )

    def with_changes(self, changes: dict[str, Any]) -> CaptureSpec:
        """This spec with some fields changed, and checked again as a whole."""
        return CaptureSpec(**{**{f: getattr(self, f) for f in self.__struct_fields__}, **changes})


def check_device(spec: CaptureSpec) -> None:
    """Raise OptionError for a device that this machine lacks.

    Not checked when a spec is made, because a recording that is read has the specs of the machine that wrote it.
    """
    if spec.device is None:
        return
    device = torch.device(spec.device)
    if device.type not in ("cuda", "xpu", "mps"):
        return
    module = torch.get_device_module(device)
    count = module.device_count() if module.is_available() else 0
    if (device.index or 0) >= count:
        there = f"there are {count} of its kind" if count else f"torch finds no {device.type} here"
        raise OptionError(f"CaptureSpec(device={str(device)!r}): {there}; give device='cpu', or leave it out")


def check_changes(changes: dict[str, Any]) -> dict[str, Any]:
    """The fields to change in a spec; OptionError for an unknown name or a value that is not allowed."""
    for name in changes:
        if name not in CaptureSpec.__struct_fields__:
            raise OptionError(
                f"{name!r} is not a field of CaptureSpec; {did_you_mean(name, CaptureSpec.__struct_fields__)}"
            )
    CaptureSpec(**changes)
    return changes


def kept_dtype(spec: CaptureSpec, dtype: torch.dtype) -> torch.dtype:
    """The dtype that a value is kept in; integers and booleans are never cast."""
    castable = dtype.is_floating_point or dtype.is_complex
    return spec.dtype if spec.dtype is not None and castable else dtype


def check_gradients(value: torch.Tensor, spec: CaptureSpec) -> None:
    """Raise GradientError if a spec asks for gradients where none can flow.

    ``keep_grad`` accepts a floating value that requires no gradient: behind a frozen backbone such a value is the input
    of what is trained, and refusing it would rule out probes and distillation teachers.
    """
    for name, is_set in (("keep_grad", spec.keep_grad), ("save_gradient", spec.save_gradient)):
        if not is_set:
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
                f"only floating values, for instance with dtype(...), or drop {name} for this one"
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
