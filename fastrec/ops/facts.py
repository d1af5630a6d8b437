"""What is known of every callable that a function mode can see."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodWrapperType, ModuleType
from typing import Any

import msgspec
import torch
from torch import overrides

from fastrec._torch.internals import OpOverload, OpOverloadPacket
from fastrec.ops.table import (
    COLLECTIVES,
    ESCAPES,
    NO_EVENTS,
    NOT_WRITING,
    ONE_OP,
    TENSOR_PROPERTIES,
    WRITE_FLAGS,
    WRITES,
    canonical,
)


class OpFacts(msgspec.Struct, frozen=True):
    """What holds for every call of a function.

    ``layer_type`` is the canonical name, ``func_name`` the raw one, ``segment`` how the op is written in a site.
    A ``composite`` is a Python function made of ops. ``writes`` says that every call writes an argument in place;
    ``inplace_name`` and ``inplace_position`` are those of an argument that asks for it, mostly ``inplace``. After a
    function that ``escapes``, memory of its argument or its value may be written by somebody whom torch doesn't see.
    """

    layer_type: str
    func_name: str
    segment: str
    composite: bool = False
    writes: bool = False
    inplace_position: int | None = None
    escapes: bool = False
    inplace_name: str = "inplace"


# Bounded, because functions can be made without end (a bound method is a new one at each call).
@lru_cache(maxsize=4096)
def op_facts(func: Callable[..., Any]) -> OpFacts | None:
    """What is known of a callable that a mode saw; None if its calls are never events."""
    if isinstance(func, MethodWrapperType) and func.__name__ in ("__get__", "__set__", "__delete__"):
        return _property_facts(func)
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        return _registered_facts(func)
    if isinstance(func, FunctionType):
        return _python_facts(func)
    if isinstance(func, type):  # `torch.device` and other classes whose objects are no tensors
        return None
    name = getattr(func, "__name__", type(func).__name__)
    if isinstance(func, BuiltinFunctionType) and func.__module__ == "_operator":
        name = f"__{name.strip('_')}__"
    return None if _is_silent(name) else _facts(name, flag=WRITE_FLAGS.get(name))


def reads_inplace_flag(facts: OpFacts, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether this very call writes an argument in place."""
    if facts.writes or kwargs.get("out") is not None:
        return True
    position = facts.inplace_position
    if position is None:
        return False
    asked = args[position] if len(args) > position else kwargs.get(facts.inplace_name)
    return asked is not None and asked is not False


def _python_facts(func: FunctionType) -> OpFacts | None:
    name, module = func.__name__, func.__module__ or ""
    if not module.startswith("torch"):
        return _facts(name, composite=openable(func))
    if _is_silent(name):
        return None
    if module.startswith("torch.distributed"):
        return _facts(name, writes=name in COLLECTIVES)
    flag = WRITE_FLAGS.get(f"{module}.{name}")
    parameters = func.__code__.co_varnames[: func.__code__.co_argcount]
    if flag is None and "inplace" in parameters:
        flag = "inplace", parameters.index("inplace")
    return _facts(name, composite=name not in ONE_OP.get(module, ()) and openable(func), flag=flag)


def _property_facts(func: MethodWrapperType) -> OpFacts | None:
    owner: Any = func.__self__
    name = owner.fget.__name__ if isinstance(owner, property) and owner.fget else owner.__name__
    if func.__name__ != "__get__" or not (name in TENSOR_PROPERTIES or name in ESCAPES):
        return None
    return _facts(name)


def _registered_facts(func: OpOverload | OpOverloadPacket) -> OpFacts | None:
    """The facts of an op of `torch.ops`, from its schemas."""
    if isinstance(func, OpOverload):
        schemas = [func._schema]
    else:
        schemas = [getattr(func, name)._schema for name in func.overloads()]  # type: ignore[no-untyped-call]
    writes = any(
        argument.is_write and not (argument.kwarg_only and len(schemas) > 1)  # else an `out` that may not be given
        for schema in schemas
        for argument in schema.arguments
    )
    if not writes and not any("Tensor" in str(value.type) for schema in schemas for value in schema.returns):
        return None
    name = schemas[0].name.rpartition("::")[2]
    facts = _facts(name, writes=writes, flag=WRITE_FLAGS.get(name))
    return msgspec.structs.replace(facts, func_name=func.__name__)


def _is_silent(name: str) -> bool:
    return name in NO_EVENTS or name.startswith(("is_", "sym_", "_sym_"))


def _facts(name: str, *, composite: bool = False, writes: bool = False, flag: tuple[str, int] | None = None) -> OpFacts:
    inplace = name.endswith("_") and not name.endswith("__") and name not in NOT_WRITING
    flag_name, position = flag or ("inplace", None)
    return OpFacts(
        layer_type=canonical(name),
        func_name=name,
        segment=name if composite else canonical(name),
        composite=composite,
        writes=writes or inplace or name in WRITES,
        inplace_position=position,
        escapes=name in ESCAPES,
        inplace_name=flag_name,
    )


ASKS_FOR_A_MODE = (
    overrides.has_torch_function,
    overrides.has_torch_function_unary,
    overrides.has_torch_function_variadic,
)


def openable(func: Callable[..., Any]) -> bool:
    """Whether `opened` can keep `func` from handing itself to a mode: it or a helper of its own asks by name."""
    return isinstance(func, FunctionType) and any(_questions(part) for part in _parts(func, set()))


@lru_cache(maxsize=1024)
def opened(func: FunctionType) -> Callable[..., Any]:
    """A copy of `func` that never hands itself to a mode, so that the ops inside reach the mode one by one.

    The copy runs the same code on the same globals, seen live, with equal results to the last bit.
    """
    if not openable(func):
        raise TypeError(f"{func!r} can't be opened: it isn't a Python function that asks `has_torch_function` by name")
    return _copy(func)


@cache
def _opened_helper(func: FunctionType) -> FunctionType:
    """A function that an opened one calls; its own copy only if it may ask for a mode."""
    return _copy(func) if openable(func) else func


def _copy(func: FunctionType) -> FunctionType:
    cells = [
        CellType(_opened_helper(inner)) if isinstance(inner, FunctionType) and inner is not func else cell
        for cell, inner in zip(func.__closure__ or (), closed_over(func), strict=True)
    ]
    copy = FunctionType(func.__code__, _OpenGlobals(func), func.__name__, func.__defaults__, tuple(cells))
    copy.__kwdefaults__ = func.__kwdefaults__
    copy.__qualname__ = func.__qualname__
    copy.__module__ = func.__module__
    return copy


class _OpenGlobals(dict[str, Any]):
    """The globals of a function, with "no" for an answer to every `has_torch_function`.

    Names are looked up when they are used, because libraries patch functions into torch's modules.
    """

    __slots__ = ("_forwards_to", "_globals", "_ours")

    def __init__(self, func: FunctionType) -> None:
        super().__init__(__builtins__=builtins, __name__=func.__globals__.get("__name__"))
        self.update(dict.fromkeys(_questions(func), _no_mode))
        self._globals = func.__globals__
        # Private helpers hand over the public function in its own name (`_unique_impl` for `unique`), and a function
        # may be built on its own meta (`max_pool2d` on `max_pool2d_with_indices`) or, if it is a method, on the
        # function of the same name (`Tensor.stft` on `torch.stft`).
        layer_type = canonical(func.__name__)
        self._ours = {name for name in _names(func.__code__) if name.startswith("_") or canonical(name) == layer_type}
        self._forwards_to = func.__name__ if isinstance(getattr(torch, func.__name__, None), FunctionType) else None

    def __missing__(self, name: str) -> Any:
        value = self._globals[name]
        if name in self._ours and isinstance(value, FunctionType):
            return _opened_helper(value)
        if self._forwards_to is not None and value is torch:
            return _opened_torch(self._forwards_to)
        return value


@cache
def _opened_torch(name: str) -> _TorchWithOpened:
    return _TorchWithOpened(name)


class _TorchWithOpened(ModuleType):
    """`torch`, for a method that forwards to the function of its own name: `x.stft` to `torch.stft`."""

    def __init__(self, name: str) -> None:
        super().__init__("torch")
        self._name = name

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        return _opened_helper(value) if name == self._name else value


def _no_mode(*_: object) -> bool:
    return False


def _questions(func: FunctionType) -> list[str]:
    names = func.__globals__
    asked = (name for name in _names(func.__code__) if name in names)
    return [name for name in asked if any(names[name] is question for question in ASKS_FOR_A_MODE)]


def _names(code: CodeType) -> set[str]:
    """The names in a code object and in the lambdas and comprehensions inside of it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def closed_over(func: FunctionType) -> list[Any]:
    """What the variables of the enclosing functions hold; None for those without a value yet."""
    return [_contents(cell) for cell in func.__closure__ or ()]


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _parts(func: FunctionType, seen: set[FunctionType]) -> Iterator[FunctionType]:
    """The function, those in its closure, and the private helpers from its module, as far as they lead."""
    if func in seen:
        return
    seen.add(func)
    yield func
    helpers = [func.__globals__.get(name) for name in _names(func.__code__) if name.startswith("_")]
    for part in (*closed_over(func), *helpers):
        if isinstance(part, FunctionType):
            yield from _parts(part, seen)
