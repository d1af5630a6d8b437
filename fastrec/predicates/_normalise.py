"""The one place where what a user gives as ``keep_op`` or ``keep_module`` becomes a predicate."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

from fastrec._errors import PredicateError
from fastrec.predicates._answers import check_callable
from fastrec.predicates._base import NEVER, Opaque, PredicateBase
from fastrec.predicates._events import kind, op
from fastrec.predicates._modules import module

Option = Literal["keep_op", "keep_module"]

_ALL = {"keep_op": kind("op"), "keep_module": kind("module_exit")}

_FROM_GLOBS: dict[str, Callable[..., PredicateBase]] = {"keep_op": op, "keep_module": module}

_EXAMPLES = {
    "keep_op": "'relu' or ['relu', 'conv*'] (op types)",
    "keep_module": "'encoder.*' (module addresses)",
}


def normalise(value: object, *, option: Option) -> PredicateBase:
    """The value of an option as a predicate. None, which is what an option has that was left out, is NEVER."""
    if value is None:
        return NEVER
    if isinstance(value, PredicateBase):
        return value
    if value is True:
        return _ALL[option]
    if isinstance(value, str):
        return _FROM_GLOBS[option](value)
    if value is False or (isinstance(value, (list, tuple, set, frozenset)) and not value):
        raise PredicateError(f"{option}={value!r} keeps nothing; leave {option} out, or give {_EXAMPLES[option]}")
    if isinstance(value, (list, tuple, set, frozenset)):
        return _FROM_GLOBS[option](*_globs(value, option))
    if not callable(value):
        raise PredicateError(
            f"{option} got {value!r} ({type(value).__name__}); give a predicate, a function of the context, "
            f"{_EXAMPLES[option]}, or True"
        )
    return Opaque(check_callable(value, option))


def _globs(values: Collection[object], option: Option) -> list[str]:
    globs: list[str] = []
    for glob in values:
        if not isinstance(glob, str):
            raise PredicateError(
                f"{option} got a {type(values).__name__} that holds {glob!r} ({type(glob).__name__}); "
                "a list holds strings, and predicates are joined with |"
            )
        globs.append(glob)
    # The order of a set is another one in each process, and equal sets are to print alike.
    return sorted(globs) if isinstance(values, (set, frozenset)) else globs
