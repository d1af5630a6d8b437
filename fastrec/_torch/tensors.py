"""What has to be known of a tensor before it is kept: is it like an earlier one, is it ours alone, can it be copied.

    is_alike = tensor_guard(first)      # class, shape, strides, dtype, device, dispatch keys: one call into C++
    if is_alike(value): ...             # what was worked out for the first holds for this one

    have_sole_owner(values)             # nobody else can write to them, so they need no copy
    check_copyable(value)               # raises UnsupportedTensorError, which says what to do instead

These run for every value that is kept. Looking at the properties of a tensor one by one from Python would take longer
than copying it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from sys import getrefcount
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fastrec._errors import UnsupportedTensorError
from fastrec._torch.internals import (
    TensorGuards,
    dispatch_mode_count,
    no_dispatch_modes,
    no_function_modes,
    saved_tensors_hooks_error,
    storage_id,
    storage_use_count,
)

ResultT = TypeVar("ResultT")

TensorGuard = Callable[[Tensor], bool]

TensorsGuard = Callable[..., bool]

# --- Is it like an earlier one? -------------------------------------------------------------------------------------


def tensor_guard(example: Tensor) -> TensorGuard:
    """A test for values like this one: the same class, shape, strides, dtype, device and dispatch keys.

    The keys tell whether a value is lazily negated or conjugated, a batched wrapper, or made in inference mode. What
    is switched on in this thread (autocast, inference mode) is part of them, so a value may differ from itself
    elsewhere. Whether it requires a gradient is not compared where gradients are off.
    """
    return tensors_guard([example])


def tensors_guard(examples: Sequence[Tensor]) -> TensorsGuard:
    """The same for several values at once, which costs less than one by one.

    These are the guards that ``torch.compile`` puts before compiled code.
    """
    guards: Any = TensorGuards  # torch's stub declares another signature
    test: TensorsGuard = guards(
        *examples,
        dynamic_dims_sizes=[list(example.shape) for example in examples],
        dynamic_dims_strides=[list(example.stride()) for example in examples],
    ).check
    return test


def never_matches(*values: Tensor) -> bool:
    """The guard that no value passes."""
    return False


# --- Is it ours alone? ----------------------------------------------------------------------------------------------


def have_sole_owner(values: list[Tensor]) -> bool:
    """Whether nobody but the list has these tensors or their memory: no Python object, no view, not autograd."""
    for value in values:
        if (
            getrefcount(value) != _REFERENCES
            or value._use_count() != _TENSOR_USES  # type: ignore[attr-defined]
            or storage_use_count(storage_id(value)) != _STORAGE_USES
        ):
            return False
    return True


def own_their_storage(values: list[Tensor]) -> bool:
    """Whether no other library has seen the memory of these tensors, and could have written to it.

    Memory that numpy or another library made or was given can't be resized, even after its view of it is gone.
    """
    # A loop, because `all(...)` would make a generator, which takes longer than the questions.
    for value in values:
        if not value.untyped_storage().resizable():
            return False
    return True


def has_memory(value: Tensor) -> bool:
    """Whether the storage of a tensor has memory.

    FSDP frees a gathered parameter by resizing its storage to nothing. Tensors over it stay what they were, to read
    them crashes the process, and their versions tell nothing.
    """
    # Not by untyped_storage(), which makes an owner that `have_sole_owner` would count.
    return not value.numel() or value.data_ptr() != value.storage_offset() * value.element_size()


def _counts_of_sole_owner(values: list[Tensor]) -> tuple[int, int, int]:
    for value in values:  # as in `have_sole_owner`, because the loop variable is one reference more
        uses: int = value._use_count()  # type: ignore[attr-defined]
        return getrefcount(value), uses, storage_use_count(storage_id(value))
    raise AssertionError


# What is counted for a tensor that only a list has depends on Python and torch, so it is measured once.
_REFERENCES, _TENSOR_USES, _STORAGE_USES = _counts_of_sole_owner([torch.empty(1)])

# --- Can it be copied? ----------------------------------------------------------------------------------------------


@contextmanager
def outside_torch_modes() -> Iterator[None]:
    """Make tensors that other recorders do not see, and that are normal ones even in inference mode.

    A tensor made in inference mode could never be saved for a backward pass by whoever reads it.
    """
    with no_function_modes():
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                yield
        else:
            yield


def run_outside_dispatch_modes(function: Callable[[Tensor], ResultT], value: Tensor) -> ResultT:
    """Run a function of a value so that no dispatch mode sees what it does.

    Selective activation checkpointing counts the ops of the first run to know what to save, and those of the second to
    know where to put it. An op of ours that ran in one of them alone would shift what it puts where.
    """
    if not dispatch_mode_count() or type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return function(value)
    with no_dispatch_modes():
        return function(value)


def run_outside_saved_tensors_hooks(function: Callable[[Tensor], ResultT], value: Tensor) -> ResultT:
    """Run a function of a value so that what autograd saves for it goes to no hooks.

    A checkpoint takes what autograd saves in the first run, and expects as many tensors in the second.
    """
    if saved_tensors_hooks_error() is not None:
        return function(value)
    with saved_tensors_hooks(itself, itself):
        return function(value)


def itself(value: Tensor) -> Tensor:
    """The value: what is saved for a backward pass where nobody changes it."""
    return value


def clone_like(value: Tensor) -> Tensor:
    """A copy that requires a gradient if the value does."""
    return run_outside_dispatch_modes(_clone_like, value)


def _clone_like(value: Tensor) -> Tensor:
    with no_function_modes():
        copy = value.clone()
        # Where gradients are off a copy requires none, and a record says whether its value does.
        return copy.requires_grad_() if value.requires_grad else copy


def check_copyable(value: Tensor) -> None:
    """Raise UnsupportedTensorError for a tensor that can't be copied as it is."""
    obstacle = _obstacle_to_copying(value)
    if obstacle is not None:
        kind, remedy = obstacle
        raise UnsupportedTensorError(f"{kind} can't be recorded as it is; {remedy}")


def _obstacle_to_copying(value: Tensor) -> tuple[str, str] | None:
    """What kind of tensor it is, and what to do; None for one that can be copied."""
    dense = "leave it out with the predicate, or record a dense tensor made from it"
    cls = type(value)
    # A subclass with its own dispatch decides what its memory means: a shard, a fake, a batch of shapes.
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


# Not every torch has all of them.
_SUB_BYTE = frozenset(
    dtype
    for name in (f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8))
    if isinstance(dtype := getattr(torch, name, None), torch.dtype)
)


def python_references(value: Tensor) -> int:
    """How many references from Python a tensor has; comparable only between calls from the same place."""
    count = getrefcount(value)
    has_other_owners = value._use_count() > 1  # type: ignore[attr-defined]
    return count - 1 if has_other_owners and _counts_other_owners() else count


@cache
def _counts_other_owners() -> bool:
    """Whether a tensor that autograd holds too has one more reference from Python, which depends on the version."""
    with no_function_modes(), torch.inference_mode(False), torch.enable_grad():
        value = torch.ones(1, requires_grad=True)
        before = getrefcount(value)
        result = value + 1
    return getrefcount(value) > before and result is not None
