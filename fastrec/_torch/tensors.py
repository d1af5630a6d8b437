"""Whether a value is like an earlier one, in one question: looking at each property in turn costs more than a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from sys import getrefcount
from typing import Any

import torch
from torch import Tensor

from fastrec._errors import UnsupportedTensorError
from fastrec._torch.internals import TensorGuards, no_function_modes, storage_id, storage_use_count

TensorGuard = Callable[[Tensor], bool]

TensorsGuard = Callable[..., bool]


def tensor_guard(example: Tensor) -> TensorGuard:
    """A test for values like this one: same class, shape, strides, dtype and device, and the same dispatch keys.

    The keys tell whether a value is lazily negated or conjugated, a batched wrapper, or made in inference mode. What
    is on in this thread (autocast, inference mode) counts too, so that the same value may be unlike itself elsewhere.
    Whether it requires a gradient does not count where gradients are off.
    """
    return tensors_guard([example])


def tensors_guard(examples: Sequence[Tensor]) -> TensorsGuard:
    """The same for several values in one question, which cost less so than one by one."""
    guards: Any = TensorGuards  # torch's own stub for it tells another signature
    test: TensorsGuard = guards(
        *examples,
        dynamic_dims_sizes=[list(example.shape) for example in examples],
        dynamic_dims_strides=[list(example.stride()) for example in examples],
    ).check
    return test


def never_matches(*values: Tensor) -> bool:
    """The test that no value passes."""
    return False


def have_sole_owner(values: list[Tensor]) -> bool:
    """Whether no Python object but the list has these tensors or their memory, nor C++ (autograd, views)."""
    for value in values:
        if (
            getrefcount(value) != _REFERENCES
            or value._use_count() != _USES  # type: ignore[attr-defined]
            or storage_use_count(storage_id(value)) != _USERS
        ):
            return False
    return True


def own_their_storage(values: list[Tensor]) -> bool:
    """Whether no other library has seen the memory of these tensors, and may have written to it.

    What numpy or another library made or was given can't be resized, even after their view of it is gone.
    """
    for value in values:  # a generator would take longer than what it asks
        if not value.untyped_storage().resizable():
            return False
    return True


def _counts(values: list[Tensor]) -> tuple[int, int, int]:
    for value in values:
        uses: int = value._use_count()  # type: ignore[attr-defined]
        return getrefcount(value), uses, storage_use_count(storage_id(value))
    raise AssertionError


# How much counts for a tensor that only a list has depends on Python and torch.
_REFERENCES, _USES, _USERS = _counts([torch.empty(1)])


@contextmanager
def outside_torch_modes() -> Iterator[None]:
    """Make tensors unseen by other recorders, and normal ones even where the user is in inference mode.

    A tensor made in inference mode could never be saved for a backward pass by whoever reads it.
    """
    with no_function_modes():
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                yield
        else:
            yield


def clone_like(value: Tensor) -> Tensor:
    """A copy of a value that tells the same of it."""
    with no_function_modes():
        copy = value.clone()
        # Where gradients are off a copy requires none, and a record says whether its value does.
        return copy.requires_grad_() if value.requires_grad else copy


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
