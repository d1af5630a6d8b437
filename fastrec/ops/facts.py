"""What holds for every callable that a function mode can see, and copies of composites that show a mode their inside.

    >>> import torch
    >>> op_facts(torch.Tensor.add_)
    OpFacts(layer_type='add', func_name='add_', segment='add', composite=False, writes=True, ...)
    >>> op_facts(torch.Tensor.size) is None  # no event: it returns no tensor
    True

Facts are looked up by the function itself, once, and kept; what depends on the arguments of a call is left to
``reads_inplace_flag``.

**Opening.** A composite first asks ``has_torch_function(...)``, and hands itself to the mode if the answer is yes. So a
mode sees one call, and torch turns the mode off while the mode's handler runs the function. To see the ops inside, the
mode has to stay on, and the composite has to get "no" for an answer. Patching torch's modules would give that answer to
all threads and all callers. ``opened`` copies the function instead, with the same code object and with globals in
which only that question has another answer. The same code runs the same ops in the same order on the same values, so
the results are equal to the last bit.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

import msgspec
import torch
from torch import Tensor, overrides

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

    Arguments:
        layer_type: the canonical name, such as "add".
        func_name: the raw name, such as "__iadd__".
        segment: how the op is written in a site: a composite by its raw name, any other op by its canonical one.
        composite: whether it is a Python function made of several ops.
        writes: whether every call writes an argument in place.
        inplace_position: where the argument stands that asks a call to write in place; None if there is none.
        escapes: whether memory of its argument or value may afterwards be written by code that torch doesn't see,
            such as numpy.
        inplace_name: the keyword of the argument at ``inplace_position``.
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
    """The facts of a callable that a mode saw; None if its calls are never events."""
    if getattr(func, "__name__", None) in ("__get__", "__set__", "__delete__") and hasattr(func, "__self__"):
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


@cache
def op_types() -> frozenset[str]:
    """The canonical names of all functions of torch that a mode can see."""
    functions = [function for group in overrides.get_overridable_functions().values() for function in group]
    return frozenset(facts.layer_type for facts in map(op_facts, functions) if facts is not None)


def reads_inplace_flag(facts: OpFacts, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether this very call writes an argument in place."""
    if facts.writes or kwargs.get("out") is not None:
        return True
    position = facts.inplace_position
    if position is None:
        return False
    flag = args[position] if len(args) > position else kwargs.get(facts.inplace_name)
    return flag is not None and flag is not False  # it may be a tensor or a number: `running_mean`, `max_norm`


def _python_facts(func: FunctionType) -> OpFacts | None:
    name, module = func.__name__, func.__module__ or ""
    if not module.startswith("torch"):
        return _facts(name, composite=openable(func))
    if _is_silent(name):
        return None
    if module == "torch.foreach":  # since 2.15, other names of `torch._foreach_add` and its like
        return msgspec.structs.replace(_facts(f"_foreach_{name}"), func_name=name)
    if module.startswith("torch.distributed"):
        return _facts(name, writes=name in COLLECTIVES)
    flag = WRITE_FLAGS.get(f"{module}.{name}")
    parameters = func.__code__.co_varnames[: func.__code__.co_argcount]
    if flag is None and "inplace" in parameters:
        flag = "inplace", parameters.index("inplace")
    return _facts(name, composite=name not in ONE_OP.get(module, ()) and openable(func), flag=flag)


def _property_facts(func: Any) -> OpFacts | None:
    # A getter in C hands over what `torch.Tensor` has under its name, so where another tool has put a property there,
    # it is that one, of any name: the name counts under which it stands.
    owner: Any = func.__self__
    known = (name for cls in Tensor.__mro__ for name, value in vars(cls).items() if value is owner)
    name = next(known, None) or getattr(owner, "__name__", None) or getattr(owner.fget, "__name__", "")
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
        # Of several overloads, one with a keyword to write to has an `out`, which a call may leave out.
        argument.is_write and not (argument.kwarg_only and len(schemas) > 1)
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


# --- Opening composites ---------------------------------------------------------------------------------------------

ASKS_FOR_A_MODE = (
    overrides.has_torch_function,
    overrides.has_torch_function_unary,
    overrides.has_torch_function_variadic,
)


def openable(func: Callable[..., Any]) -> bool:
    """Whether `opened` can keep `func` from handing itself to a mode: it or a helper of its own asks by name."""
    return isinstance(func, FunctionType) and any(map(_mode_questions, _with_helpers(func, set())))


@lru_cache(maxsize=1024)
def opened(func: FunctionType) -> Callable[..., Any]:
    """A copy of `func` that never hands itself to a mode, so that the ops inside reach the mode one by one.

    It runs the same code on the same globals, which it looks up when it runs, and returns the same bits.
    """
    if not openable(func):
        raise TypeError(f"{func!r} can't be opened: it isn't a Python function that asks `has_torch_function` by name")
    return _copy(func)


@cache
def _opened_helper(func: FunctionType) -> FunctionType:
    """A function that an opened one calls; its own copy only if it may ask for a mode."""
    return _copy(func) if openable(func) else func


def _copy(func: FunctionType) -> FunctionType:
    # `boolean_dispatch` of torch keeps the function to call in a variable of the enclosing one.
    cells = [
        CellType(_opened_helper(value)) if isinstance(value, FunctionType) and value is not func else cell
        for cell, value in zip(func.__closure__ or (), closed_over(func), strict=True)
    ]
    copy = FunctionType(func.__code__, _OpenGlobals(func), func.__name__, func.__defaults__, tuple(cells))
    copy.__kwdefaults__ = func.__kwdefaults__
    copy.__qualname__ = func.__qualname__
    copy.__module__ = func.__module__
    return copy


class _OpenGlobals(dict[str, Any]):
    """The globals of a function, with "no" for an answer to every `has_torch_function`.

    Every other name is looked up in the function's own globals when it is used, because libraries patch functions into
    torch's modules. CPython looks a global up with the `__getitem__` of a dict's subclass, and so asks `__missing__`;
    a KeyError sends it on to the builtins.
    """

    __slots__ = ("_forwards_to", "_globals", "_helpers")

    def __init__(self, func: FunctionType) -> None:
        super().__init__(__builtins__=builtins, __name__=func.__globals__.get("__name__"))
        self.update(dict.fromkeys(_mode_questions(func), _no_mode))
        self._globals = func.__globals__
        # The functions that ask for a mode on behalf of this one have to be opened as well. Private helpers hand over
        # the public function in its own name (`_unique_impl` for `unique`), and a function may be built on another form
        # of the same op: `max_pool2d` on `max_pool2d_with_indices`, `Tensor.stft` on `torch.stft`.
        layer_type = canonical(func.__name__)
        names = names_in(func.__code__)
        self._helpers = {name for name in names if name.startswith("_") or canonical(name) == layer_type}
        self._forwards_to = func.__name__ if isinstance(getattr(torch, func.__name__, None), FunctionType) else None

    def __missing__(self, name: str) -> Any:
        value = self._globals[name]
        if name in self._helpers and isinstance(value, FunctionType):
            return _opened_helper(value)
        if self._forwards_to is not None and value is torch:
            return _torch_with_opened(self._forwards_to)
        return value


class _TorchWithOpened(ModuleType):
    """`torch`, for a method that forwards to the function of its own name: `x.stft` to `torch.stft`."""

    def __init__(self, name: str) -> None:
        super().__init__("torch")
        self._name = name

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        return _opened_helper(value) if name == self._name else value


_torch_with_opened = cache(_TorchWithOpened)


def _no_mode(*_: object) -> bool:
    return False


def _mode_questions(func: FunctionType) -> list[str]:
    """The names under which a function asks for a mode."""
    variables = func.__globals__
    names = (name for name in names_in(func.__code__) if name in variables)
    return [name for name in names if any(variables[name] is question for question in ASKS_FOR_A_MODE)]


def _with_helpers(func: FunctionType, seen: set[FunctionType]) -> Iterator[FunctionType]:
    """The function, those in its closure, and the private helpers from its module, as far as they lead."""
    if func in seen:
        return
    seen.add(func)
    yield func
    helpers = [func.__globals__.get(name) for name in names_in(func.__code__) if name.startswith("_")]
    for helper in (*closed_over(func), *helpers):
        if isinstance(helper, FunctionType):
            yield from _with_helpers(helper, seen)


def names_in(code: CodeType) -> set[str]:
    """The names of globals and attributes in a code object and in the lambdas and comprehensions inside of it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(names_in, inner))


def closed_over(func: FunctionType) -> list[Any]:
    """What the variables of the enclosing functions hold; None for those without a value yet."""
    return [_contents(cell) for cell in func.__closure__ or ()]


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
