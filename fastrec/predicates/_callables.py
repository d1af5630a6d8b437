"""Which callables can be asked as a predicate."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn

from fastrec._errors import PredicateError


def check_callable(value: object, given_to: str) -> Callable[[Any], Any]:
    """The value, if it can be called with a context; else a PredicateError that says what to give instead."""
    if isinstance(value, nn.Module):
        raise PredicateError(
            f"{given_to} got a module ({type(value).__name__}); give its address as model.named_modules() "
            "shows it: module('encoder.0')"
        )
    if isinstance(value, type):
        name = value.__name__
        hint = f"module_type({name}) selects by it" if issubclass(value, nn.Module) else "give an instance"
        raise PredicateError(f"{given_to} got the class {name}; {hint}")
    if not callable(value):
        raise PredicateError(
            f"{given_to} got {value!r} ({type(value).__name__}); "
            "give a predicate such as op('relu') or a function of the context"
        )
    if isinstance(value, FunctionType) and str(value.__module__).startswith("fastrec.predicates."):
        if value.__name__.isidentifier():  # a lambda in a docstring of ours is not
            raise PredicateError(f"{given_to} got {value.__name__} itself; call it: {value.__name__}(...)")
    _check_signature(value, given_to)
    return value


def _check_signature(function: Callable[..., Any], given_to: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # builtins may have none
        return
    try:
        signature.bind(None)
    except TypeError:
        raise PredicateError(
            f"{given_to} got a function with the arguments {signature}; it is called with one, the context"
        ) from None
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise PredicateError(
            f"{given_to} got a coroutine or generator function; write a plain `def` that returns its answer"
        )
