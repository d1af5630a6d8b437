"""Whether nobody else has a tensor, so that nobody can write into it."""

from __future__ import annotations

from collections.abc import Callable
from sys import getrefcount

import torch
from torch import Tensor

_storage: Callable[[Tensor], int] = torch._C._storage_id  # type: ignore[attr-defined]
_users: Callable[[int], int] = torch._C._storage_Use_Count


def are_alone(values: list[Tensor]) -> bool:
    """Whether no Python object but the list has these tensors or their memory, nor C++ (autograd, views)."""
    for value in values:
        if (
            getrefcount(value) != _REFERENCES
            or value._use_count() != _USES  # type: ignore[attr-defined]
            or _users(_storage(value)) != _USERS
        ):
            return False
    return True


def are_private(values: list[Tensor]) -> bool:
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
        return getrefcount(value), uses, _users(_storage(value))
    raise AssertionError


# How much counts for a tensor that only a list has depends on Python and torch.
_REFERENCES, _USES, _USERS = _counts([torch.empty(1)])
