"""The one place where what a user gives as an option becomes a predicate."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch

from fastrec._errors import PredicateError, did_you_mean
from fastrec.events.context import STRUCTURAL_FIELDS
from fastrec.predicates._answers import Answer, check_callable, checked, function_text
from fastrec.predicates._base import ALWAYS, NEVER, Leaf, Opaque, PredicateBase, constant
from fastrec.predicates._events import after, kind, op
from fastrec.predicates._modules import inside, module, module_input, module_type
from fastrec.predicates._partial_context import KindView, SiteView, StructuralView
from fastrec.predicates._passes import entry, every, first, grad_enabled, phase
from fastrec.predicates._protocol import Context
from fastrec.predicates._tensors import DTYPES, dtype, shape

Option = Literal["keep_op", "keep_module"]

_ALL = {"keep_op": kind("op"), "keep_module": kind("module_exit")}

_FROM_GLOBS: dict[str, Callable[..., PredicateBase]] = {"keep_op": op, "keep_module": module}

_EXAMPLE = {
    "keep_op": "'relu' or ['relu', 'conv*'] (op types)",
    "keep_module": "'encoder.*' (module addresses)",
}


def normalise(value: object, *, option: Option) -> PredicateBase:
    """What was given as ``keep_op`` or ``keep_module`` as a predicate; None, not given, is NEVER."""
    if value is None:
        return NEVER
    if isinstance(value, PredicateBase):
        return value
    if value is True:
        return _ALL[option]
    if isinstance(value, str):
        return _FROM_GLOBS[option](value)
    if value is False or (isinstance(value, (list, tuple, set, frozenset)) and not value):
        raise PredicateError(f"{option}={value!r} keeps nothing; leave {option} out, or give {_EXAMPLE[option]}")
    if isinstance(value, (list, tuple, set, frozenset)):
        return _FROM_GLOBS[option](*_strings(value, option))
    if not callable(value):
        raise PredicateError(
            f"{option} got {value!r} ({type(value).__name__}); give a predicate, a function of the context, "
            f"{_EXAMPLE[option]}, or True"
        )
    return Opaque(check_callable(value, option))


def _strings(given: Collection[object], option: Option) -> list[str]:
    """The globs of a list; those of a set in one order, so that equal sets print alike."""
    for glob in given:
        if not isinstance(glob, str):
            raise PredicateError(
                f"{option} got a {type(given).__name__} that holds {glob!r} ({type(glob).__name__}); "
                "a list holds strings, and predicates are joined with |"
            )
    globs = [glob for glob in given if isinstance(glob, str)]
    return sorted(globs) if isinstance(given, (set, frozenset)) else globs


class Structural(Leaf, frozen=True):
    """See ``structural``."""

    function: Callable[[Any], Any]
    reads = STRUCTURAL_FIELDS
    is_plain = False

    def decide(self, ctx: Context) -> Answer:
        return checked(self.function(StructuralView(ctx, self)), self, ctx, at="site")

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        return constant(self.decide(view)) if isinstance(view, SiteView) else self

    def __repr__(self) -> str:
        return f"structural({function_text(self.function)})"


def structural(function: Callable[[Any], Any]) -> Structural:
    """A function that is asked once per site, on your word that its answer hangs on nothing else.

    >>> from fastrec.predicates import every, structural
    >>> deep = structural(lambda ctx: len(ctx.module_stack) > 3)
    >>> deep & every(10)
    structural(function('...<lambda>', ...)) & every(10)

    Arguments:
        function: context -> True, False, None (not kept) or a CaptureSpec. It may read ``kind``, ``site``,
            ``layer_type``, ``func_name``, ``module_address``, ``module_type``, ``module_stack`` (addresses
            and types), ``output_index``, ``input_output_address`` and ``is_bottom_level_func``; reading
            another field raises PredicateError.

    Raises PredicateError for what can't be called with a context.
    """
    return Structural(check_callable(function, "structural()"))


_CONSTANTS = {"ALWAYS": ALWAYS, "NEVER": NEVER}

_CONSTRUCTORS: dict[str, Callable[..., PredicateBase]] = {
    function.__name__: function
    for function in (
        *(op, kind, after, module, module_input, module_type, inside),
        *(shape, dtype, every, first, phase, entry, grad_enabled),
    )
}

_FUNCTIONS = ("function", "structural")


def parse(text: str) -> PredicateBase:
    """The predicate that printed as a text, such as one in the header of a recording.

    >>> from fastrec.predicates import parse
    >>> parse("op('relu', 'conv*') & every(10)")
    op('relu', 'conv*') & every(10)

    Arguments:
        text: what a predicate printed: the public names of ``fastrec.predicates``, joined. Nothing in it is
            run.

    Raises PredicateError for any other text, and for a predicate that holds functions: a text can't bring
    them back.
    """
    try:
        return _predicate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RuntimeError, MemoryError) as error:
        if isinstance(error, PredicateError):
            raise
        raise PredicateError(f"{_short(text)} is no printed predicate: {error}") from error


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
    raise PredicateError(f"{_short(ast.unparse(node))} is no part of a printed predicate")


def _call(name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> PredicateBase:
    if name in _FUNCTIONS:
        raise _unreadable(name)
    if name not in _CONSTRUCTORS:
        raise PredicateError(f"{name!r} is no predicate; {did_you_mean(name, _CONSTRUCTORS)}")
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
        case ast.Call(func=ast.Name(id=name)) if name in _FUNCTIONS:
            raise _unreadable(name)
    raise PredicateError(f"{_short(ast.unparse(node))} is no value of a printed predicate")


def _unreadable(name: str) -> PredicateError:
    return PredicateError(
        f"{name}(...) stands for a Python function, which a text can't bring back; "
        "build the predicate again from the function itself"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
