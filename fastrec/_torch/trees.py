"""The tensors in a nested value, each with its path.

    dict(leaves((x, {"logits": y})))        # {"[0]": x, "[1].logits": y}
    dict(argument_leaves((x,), {"mask": m}))  # {"[0]": x, ".mask": m}

A path reads like the Python that reaches the tensor: it is the end of a site's name (``lstm[1][0]``, ``:out.logits``).
torch's own pytrees are not used because they do not look into dataclasses and mappings of other libraries, such as the
outputs of transformers, unless each class has been registered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Set
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

_WITHOUT_TENSORS = (
    *(str, bytes, int, float, type(None), type, FunctionType, MethodType, BuiltinFunctionType),
    *(Tensor, torch.dtype, torch.device, nn.Module),
)
"""Tensors themselves, modules, and what can't hold any."""

MAX_DEPTH = 24
"""A value that is nested more deeply is taken for one that contains itself, and is not followed further."""


def leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """All tensors in tuples, lists, mappings, named tuples and dataclasses, with their paths, in order."""
    if isinstance(value, Tensor):
        yield path, value
    elif depth > MAX_DEPTH or isinstance(value, str | bytes | int | float | None):
        return
    elif isinstance(value, tuple | list):
        names = getattr(type(value), "_fields", None)
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}.{names[i]}" if names else f"{path}[{i}]", depth + 1)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            step = f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"
            yield from leaves(item, path + step, depth + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name, None), f"{path}.{field.name}", depth + 1)


def unread_classes(value: Any, depth: int = 0) -> Iterator[str]:
    """The classes of objects in a nested value that may hold tensors which ``leaves`` does not find."""
    if depth > MAX_DEPTH or isinstance(value, _WITHOUT_TENSORS):
        return
    if isinstance(value, tuple | list | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from unread_classes(item, depth + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from unread_classes(getattr(value, field.name, None), depth + 1)
    elif isinstance(value, Iterator):
        yield type(value).__name__  # to look into it would use it up
    else:
        content = list(value) if isinstance(value, Set) else getattr(value, "__dict__", None)
        if isinstance(content, list | dict) and next(leaves(content), None) is not None:
            yield type(value).__name__


def argument_leaves(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """All tensors in the arguments of a call: ``[0]`` is the first positional one, ``.x`` the keyword ``x``."""
    yield from leaves(args)
    yield from leaves(kwargs)
