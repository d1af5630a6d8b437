"""Predicates read back from the text that they print, such as the one in the header of a recording.

The text is taken apart as syntax and never evaluated, because it may come from somebody else's file.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import torch

from fastrec._errors import PredicateError, did_you_mean
from fastrec.predicates._base import ALWAYS, NEVER, PredicateBase
from fastrec.predicates._events import after, kind, op
from fastrec.predicates._modules import inside, module, module_input, module_type
from fastrec.predicates._passes import entry, every, first, grad_enabled, phase
from fastrec.predicates._tensors import DTYPES, dtype, shape

_CONSTANTS = {"ALWAYS": ALWAYS, "NEVER": NEVER}

_CONSTRUCTORS: dict[str, Callable[..., PredicateBase]] = {
    function.__name__: function
    for function in (
        *(op, kind, after, module, module_input, module_type, inside),
        *(shape, dtype, every, first, phase, entry, grad_enabled),
    )
}

_TEXTS_OF_FUNCTIONS = ("function", "structural")


def parse(text: str) -> PredicateBase:
    """The predicate that printed a text, such as one in the header of a recording.

    >>> from fastrec.predicates import parse
    >>> parse("op('relu', 'conv*') & every(10)")
    op('relu', 'conv*') & every(10)

    Arguments:
        text: what a predicate printed: public names of ``fastrec.predicates``, joined. None of it is run.

    Raises PredicateError for any other text, and for a predicate that holds functions, which a text can't
    bring back.
    """
    try:
        return _predicate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RuntimeError, MemoryError) as error:
        if isinstance(error, PredicateError):
            raise
        raise PredicateError(f"{_quoted(text)} is not a printed predicate: {error}") from error


def _predicate(node: ast.expr) -> PredicateBase:
    match node:
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _predicate(left) & _predicate(right)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _predicate(left) | _predicate(right)
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_predicate(operand)
        case ast.Call(func=ast.Attribute(value=inner, attr="with_"), args=[], keywords=keywords):
            return _predicate(inner).with_(**_keywords(keywords))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return _call(name, args, keywords)
    raise PredicateError(f"{_quoted(ast.unparse(node))} can't be part of a printed predicate")


def _call(name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> PredicateBase:
    if name in _TEXTS_OF_FUNCTIONS:
        raise _unreadable(name)
    if name not in _CONSTRUCTORS:
        raise PredicateError(f"{name!r} is not a predicate; {did_you_mean(name, _CONSTRUCTORS)}")
    try:
        return _CONSTRUCTORS[name](*map(_value, args), **_keywords(keywords))
    except TypeError as error:
        raise PredicateError(f"{name} does not take these arguments: {error}") from error


def _keywords(keywords: list[ast.keyword]) -> dict[str, Any]:
    return {keyword.arg or "**": _value(keyword.value) for keyword in keywords}


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Attribute(value=ast.Name(id="torch"), attr=name) if name in DTYPES:
            return DTYPES[name]
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="torch"), attr="device"),
            args=[ast.Constant(value=str(device))],
        ):
            return torch.device(device)
        case ast.Call(func=ast.Name(id=name)) if name in _TEXTS_OF_FUNCTIONS:
            raise _unreadable(name)
    raise PredicateError(f"{_quoted(ast.unparse(node))} can't be a value in a printed predicate")


def _unreadable(name: str) -> PredicateError:
    return PredicateError(
        f"{name}(...) stands for a Python function, which a text can't bring back; "
        "build the predicate again from the function itself"
    )


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
