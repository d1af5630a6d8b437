"""What a predicate may answer, how two answers merge, and how functions of the user are checked."""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from fastrec._errors import OptionError, PredicateError
from fastrec.events.capture import CaptureSpec, check_changes
from fastrec.predicates._protocol import Context, Decision, Predicate


class Changes(Mapping[str, Any]):
    """Fields of a CaptureSpec to change, in its order: checked, frozen, hashable."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        values = check_changes(dict(fields))
        self._fields = {name: values[name] for name in CaptureSpec.__struct_fields__ if name in values}

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __hash__(self) -> int:
        return hash(tuple(self._fields.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Changes, (self._fields,))

    def __repr__(self) -> str:
        return ", ".join(f"{name}={literal(value)}" for name, value in self._fields.items())


Answer = bool | Changes | CaptureSpec
"""A checked decision. Yes and no are the objects True and False, so that they can be told by identity."""


def merge(left: Answer, right: Answer) -> Answer:
    """How to keep what both keep: the right one wins, field by field, and a whole spec replaces all."""
    if right is True:
        return left
    if isinstance(right, Changes) and isinstance(left, Changes):
        return Changes({**left, **right})
    if isinstance(right, Changes) and isinstance(left, CaptureSpec):
        return left.with_changes(dict(right))
    return right


def checked(answer: object, predicate: object, ctx: Context, *, once_per_site: bool = False) -> Answer:
    """What a callable returned as an Answer; a PredicateError names the callable and the event or the site."""
    if answer is None:
        return False
    if isinstance(answer, (bool, np.bool_)):
        return bool(answer)
    if isinstance(answer, (Changes, CaptureSpec)):
        return answer
    where = f"site {ctx.site!r}" if once_per_site else f"event {ctx.label!r} at site {ctx.site!r}"
    if isinstance(answer, Mapping):
        try:
            return Changes(answer)
        except OptionError as error:
            raise PredicateError(f"{predicate!r} returned {_described(answer)} for {where}: {error}") from error
    raise PredicateError(
        f"{predicate!r} returned {_described(answer)} for {where}; it has to return True, False, None (not kept) "
        f"or a CaptureSpec. {_remedy(answer)}"
    )


def _described(answer: object) -> str:
    if isinstance(answer, torch.Tensor):
        return f"a tensor of shape {tuple(answer.shape)}"  # printing values would wait for the device
    return f"{reprlib.repr(answer)} ({type(answer).__name__})"


def _remedy(answer: object) -> str:
    if isinstance(answer, torch.Tensor):
        return "Decide by the fields of the context; a value computed elsewhere becomes a bool with .item()."
    if callable(answer):
        return "It is callable: call it, a predicate with the context, as in op('relu')(ctx)."
    return "`x and y` and `x or y` return one of their operands: wrap the whole in bool(...)."


def spec_of(decision: Decision | None, default: CaptureSpec) -> CaptureSpec | None:
    """The spec that a decision stands for, None where the event is not kept."""
    if decision is True:
        return default
    if not decision and not isinstance(decision, Mapping | CaptureSpec):
        return None
    if isinstance(decision, CaptureSpec):
        spec = decision
    elif isinstance(decision, Mapping):
        spec = default.with_changes(dict(decision))
    else:
        return default
    return spec if spec.save_activation or spec.save_metadata else None


def halt_answer(predicate: Predicate, ctx: Context) -> bool:
    """Whether a pass ends after an event; a PredicateError where the answer says how to keep it."""
    answer = predicate.decide(ctx)
    if isinstance(answer, Mapping | CaptureSpec):
        raise PredicateError(
            f"halt={predicate!r} returned {_described(answer)} for event {ctx.label!r} at site {ctx.site!r}; it has to "
            "return True, False or None: how something is kept is said by keep_op, keep_module and capture"
        )
    return bool(answer)


# --- Values and functions as text -------------------------------------------------------------------------------------


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
    """The qualified name of a function and where it was written. A text can't bring the function itself back."""
    if isinstance(function, functools.partial):
        return function_text(function.func)
    if isinstance(function, MethodType):
        return function_text(function.__func__)
    if isinstance(function, FunctionType):
        code = function.__code__
        line = f"{PurePath(code.co_filename).name}:{code.co_firstlineno}"
        return f"function({_qualified_name(function)!r}, {line!r})"
    return f"function({_qualified_name(function if isinstance(function, BuiltinFunctionType) else type(function))!r})"


def _qualified_name(value: FunctionType | BuiltinFunctionType | type) -> str:
    return f"{value.__module__}.{value.__qualname__}"


# --- Functions of the user --------------------------------------------------------------------------------------------


def check_callable(value: object, receiver: str) -> Callable[[Any], Any]:
    """The value, if it can be called with a context; else a PredicateError that says what to give instead."""
    if isinstance(value, nn.Module):
        raise PredicateError(
            f"{receiver} got a module ({type(value).__name__}); give its address as model.named_modules() "
            "shows it: module('encoder.0')"
        )
    if isinstance(value, type):
        name = value.__name__
        hint = f"module_type({name}) selects by it" if issubclass(value, nn.Module) else "give an instance"
        raise PredicateError(f"{receiver} got the class {name}; {hint}")
    if not callable(value):
        raise PredicateError(
            f"{receiver} got {value!r} ({type(value).__name__}); "
            "give a predicate such as op('relu') or a function of the context"
        )
    if isinstance(value, FunctionType) and str(value.__module__).startswith("fastrec.predicates."):
        if value.__name__.isidentifier():  # a lambda in one of our docstrings has another kind of name
            raise PredicateError(f"{receiver} got {value.__name__} itself; call it: {value.__name__}(...)")
    _check_signature(value, receiver)
    return value


def _check_signature(function: Callable[..., Any], receiver: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # builtins may have none
        return
    try:
        signature.bind(None)
    except TypeError:
        raise PredicateError(
            f"{receiver} got a function with the arguments {signature}; it is called with one, the context"
        ) from None
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise PredicateError(
            f"{receiver} got a coroutine or generator function; write a plain `def` that returns its answer"
        )
