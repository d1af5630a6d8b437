"""The one place where what a user gives as an option becomes a predicate."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

from fastrec._errors import PredicateError
from fastrec.predicates._base import NEVER, Opaque, PredicateBase
from fastrec.predicates._callables import check_callable
from fastrec.predicates._events import kind, op
from fastrec.predicates._modules import module

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
