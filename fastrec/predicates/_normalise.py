"""The one place where what a user gives as ``keep_op`` or ``keep_module`` becomes a predicate."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import reduce
from operator import or_
from typing import Any, Literal

from torch import nn

from fastrec._errors import PredicateError
from fastrec.events.capture import CaptureSpec, check_device
from fastrec.predicates._answers import check_callable
from fastrec.predicates._base import NEVER, And, Leaf, Not, Opaque, Or, PredicateBase, With
from fastrec.predicates._events import is_torch_function, kind, op
from fastrec.predicates._modules import OfModules, module, module_type

Option = Literal["keep_op", "keep_module"]

_ALL = {"keep_op": kind("op"), "keep_module": kind("module_exit")}

_EXAMPLES = {
    "keep_op": "'relu', ['relu', 'conv*'] (op types) or torch.relu",
    "keep_module": "'encoder.*' (module addresses), a module of the model, or a class of modules",
}

_LISTS = (list, tuple, set, frozenset)


def normalise(value: object, *, option: Option) -> PredicateBase:
    """The value of an option as a predicate. None, which is what an option has that was left out, is NEVER."""
    if value is None:
        return NEVER
    if isinstance(value, PredicateBase):
        return value
    if value is True:
        return _ALL[option]
    if value is False or (isinstance(value, _LISTS) and not value):
        raise PredicateError(f"{option}={value!r} keeps nothing; leave {option} out, or give {_EXAMPLES[option]}")
    if isinstance(value, _LISTS):
        return _of_names(value, option)
    if _is_name(value):
        return _of_names([value], option)
    if not callable(value):
        raise PredicateError(
            f"{option} got {value!r} ({type(value).__name__}); give a predicate, a function of the context, "
            f"{_EXAMPLES[option]}, or True"
        )
    return Opaque(check_callable(value, option))


def resolve(predicate: PredicateBase, address_of: Callable[[nn.Module], str]) -> PredicateBase:
    """The same predicate, with addresses in place of modules; an equal one where it holds none.

    Raises OptionError for a device that this machine lacks.
    """
    match predicate:
        case OfModules():
            return predicate.with_addresses(address_of)
        case And(parts=parts):
            return And(tuple(resolve(part, address_of) for part in parts))
        case Or(parts=parts):
            return Or(tuple(resolve(part, address_of) for part in parts))
        case Not(part=part):
            return Not(resolve(part, address_of))
        case With(part=part, changes=changes):
            check_device(CaptureSpec(**changes))
            return With(resolve(part, address_of), changes)
        case Leaf():
            return predicate
    raise AssertionError(predicate)


def _is_name(value: object) -> bool:
    """Whether a value stands for ops or modules by itself, so that it can be one of a list."""
    is_class = isinstance(value, type) and issubclass(value, nn.Module)
    return isinstance(value, (str, nn.Module)) or is_class or is_torch_function(value)


def _of_names(values: Collection[Any], option: Option) -> PredicateBase:
    for value in values:
        if not _is_name(value):
            raise PredicateError(
                f"{option} got a {type(values).__name__} that holds {value!r} ({type(value).__name__}); "
                f"a list holds {_EXAMPLES[option].partition(' (')[0]} and the like, and predicates are joined with |"
            )
    # The order of a set is another one in each process, and equal sets are to print alike.
    names = sorted(values, key=repr) if isinstance(values, (set, frozenset)) else list(values)
    return _ops(names) if option == "keep_op" else _modules(names)


def _ops(names: list[Any]) -> PredicateBase:
    for name in names:
        if isinstance(name, nn.Module):
            raise PredicateError(
                f"keep_op got a module ({type(name).__name__}); the ops that run in it are inside(the module), and its "
                "output is selected by keep_module="
            )
        if isinstance(name, type):
            raise PredicateError(
                f"keep_op got the class {name.__name__}; the ops that run directly in such modules are "
                f"module_type({name.__name__}), and their outputs are selected by keep_module="
            )
    return op(*names)


def _modules(names: list[Any]) -> PredicateBase:
    for name in names:
        if is_torch_function(name):
            raise PredicateError(
                f"keep_module got the function {name.__name__}; ops are selected by keep_op=, and modules by "
                f"{_EXAMPLES['keep_module']}"
            )
    classes = [name for name in names if isinstance(name, type)]
    addresses = [name for name in names if not isinstance(name, type)]
    parts = [module(*addresses)] if addresses else []
    return reduce(or_, [*parts, *([module_type(*classes)] if classes else [])])
