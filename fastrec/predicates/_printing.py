"""How the parts of a predicate print, so that what was printed can be read back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch


def literal(value: object) -> str:
    """A value as source text, in a namespace that holds torch."""
    if value is ...:
        return "..."
    if isinstance(value, torch.device):
        return f"torch.device({str(value)!r})"
    if callable(value):
        return function_text(value)
    return repr(value)


def function_text(function: Callable[..., Any]) -> str:
    """The qualified name and the place of a function; a text can't bring the function itself back."""
    if isinstance(function, functools.partial):
        return function_text(function.func)
    if isinstance(function, MethodType):
        return function_text(function.__func__)
    if isinstance(function, FunctionType):
        code = function.__code__
        place = f"{PurePath(code.co_filename).name}:{code.co_firstlineno}"
        return f"function({_qualified(function)!r}, {place!r})"
    named = function if isinstance(function, BuiltinFunctionType) else type(function)
    return f"function({_qualified(named)!r})"


def _qualified(named: FunctionType | BuiltinFunctionType | type) -> str:
    return f"{named.__module__}.{named.__qualname__}"
