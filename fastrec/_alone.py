"""Whether nobody else has a tensor, so that nobody can write into it."""

from __future__ import annotations

from collections.abc import Callable
from sys import getrefcount

import torch
from torch import Tensor

_users: Callable[[int], int] = torch._C._storage_Use_Count


def are_alone(values: list[Tensor]) -> bool:
    """Whether no Python object but the list has these tensors, nor C++ (autograd, views), nor another library.

    Memory that numpy or another library has seen can't be resized, even after their view of it is gone.
    """
    for value in values:
        storage = value.untyped_storage()
        if (
            getrefcount(value) != _REFERENCES
            or getrefcount(storage) != _HANDLES
            or value._use_count() != _USES  # type: ignore[attr-defined]
            or _users(storage._cdata) != _USERS
            or not storage.resizable()
        ):
            return False
    return True


def _counts(values: list[Tensor]) -> tuple[int, int, int, int]:
    for value in values:
        storage = value.untyped_storage()
        uses: int = value._use_count()  # type: ignore[attr-defined]
        return getrefcount(value), getrefcount(storage), uses, _users(storage._cdata)
    raise AssertionError


# How much counts for a tensor that only a list has depends on Python and torch.
_REFERENCES, _HANDLES, _USES, _USERS = _counts([torch.empty(1)])
