"""What is known of every callable that a function mode can see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType, MethodWrapperType
from typing import Any

import msgspec
from torch._ops import OpOverload, OpOverloadPacket

from fastrec._op_opening import openable
from fastrec._op_table import (
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
