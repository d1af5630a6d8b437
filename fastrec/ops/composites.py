"""Which ops may run inside a Python function, read from its bytecode."""

from __future__ import annotations

import dis
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from types import CodeType, FunctionType, GetSetDescriptorType, ModuleType
from typing import Any

import torch
from torch import Tensor, overrides

from fastrec._torch.internals import CustomOpDef, builtin_functions, builtin_nn_functions, registered_op_names
from fastrec.ops.facts import ASKS_FOR_A_MODE, closed_over, op_facts, openable
from fastrec.ops.table import OPERATORS, canonical

# Where an attribute's name may lead; the modules that a function names itself are searched too.
_NAMESPACES = (
    Tensor,
    torch,
    builtin_functions,
    builtin_nn_functions,
    torch.nn.functional,
    torch.linalg,
    torch.fft,
    torch.special,
)

# Parameters that are functions to call, by their names: annotations can't be relied on to be readable.
_HANDED_FUNCTION = re.compile("func|fn|callback|tracker")

_MACHINERY = (overrides.handle_torch_function, *ASKS_FOR_A_MODE)

_SYMBOLS = {
    **{"+": "add", "-": "sub", "*": "mul", "@": "matmul", "/": "truediv", "//": "floordiv", "%": "mod"},
    **{"**": "pow", "&": "and", "|": "or", "^": "xor", "<<": "lshift", ">>": "rshift"},
    # The endings of Python 3.10's instructions: BINARY_ADD, INPLACE_ADD.
    **{"ADD": "add", "SUBTRACT": "sub", "MULTIPLY": "mul", "MATRIX_MULTIPLY": "matmul", "TRUE_DIVIDE": "truediv"},
    **{"FLOOR_DIVIDE": "floordiv", "MODULO": "mod", "POWER": "pow", "AND": "and", "OR": "or", "XOR": "xor"},
    **{"LSHIFT": "lshift", "RSHIFT": "rshift"},
}

# `a < b` may be answered by `b > a`.
_COMPARISONS = {"<": ("lt", "gt"), "<=": ("le", "ge"), "==": ("eq",), "!=": ("ne",)}

_COMPARISONS |= {">": _COMPARISONS["<"], ">=": _COMPARISONS["<="]}

_INSTRUCTIONS = {
    "UNARY_NEGATIVE": "neg",
    "UNARY_POSITIVE": "positive",
    "CALL_INTRINSIC_1": "positive",
    "UNARY_INVERT": "bitwisenot",
    "BINARY_SUBSCR": "getitem",
    "BINARY_SLICE": "getitem",
    "STORE_SUBSCR": "setitem",
    "STORE_SLICE": "setitem",
    # A tensor that is walked over is unbound.
    **dict.fromkeys(("GET_ITER", "UNPACK_SEQUENCE", "UNPACK_EX", "CALL_FUNCTION_EX", "LIST_EXTEND"), "unbind"),
}

_BUILTINS = {
    "sum": ("unbind", "add"),
    "max": ("unbind", "gt"),
    "min": ("unbind", "lt"),
    "sorted": ("unbind", "lt"),
    "divmod": ("floordivide", "remainder"),
    "reversed": ("flip",),
    **dict.fromkeys(("list", "tuple", "set", "iter", "zip", "map", "enumerate", "any", "all"), ("unbind",)),
}


def inner_layer_types(func: Callable[..., Any]) -> frozenset[str]:
    """The layer types of the ops that may run inside of a Python function: more than really do, but none too few.

    Anything may run inside of functions that aren't torch's, that are handed a function to call, or whose code leads
    to a module that isn't imported yet.
    """
    found = _scan(func)
    return _everything() if found is None else found


@lru_cache(maxsize=1024)
def _scan(func: Callable[..., Any]) -> frozenset[str] | None:
    scan = _Scan()
    if not isinstance(func, FunctionType) or not (func.__module__ or "").startswith("torch."):
        return None
    scan.function(func)
    return None if scan.anything else frozenset(scan.found)


def _everything() -> frozenset[str]:
    """All ops there are now, the users' own included."""
    registered = (name.rpartition("::")[2].partition(".")[0] for name in registered_op_names())
    seen_by_modes = (
        facts.layer_type
        for functions in overrides.get_overridable_functions().values()
        for func in functions
        if (facts := op_facts(func)) is not None
    )
    return frozenset((*map(canonical, registered), *seen_by_modes, *OPERATORS.values()))


class _Scan:
    """What has been read so far, by following the names in the code of torch's own functions."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self.anything = False
        self._seen: set[object] = set()

    def function(self, func: FunctionType) -> None:
        # `torch` itself holds checks and symbolic numbers, whose code leads everywhere.
        if func in self._seen or not (func.__module__ or "").startswith("torch."):
            return
        self._seen.add(func)
        self.anything |= openable(func) and any(map(_HANDED_FUNCTION.search, _parameters(func.__code__)))
        self._code(func.__code__, func.__globals__)
        for value in closed_over(func):
            self._value(value)

    def _code(self, code: CodeType, names: dict[str, Any]) -> None:
        modules = [source.get(name) for name in code.co_names for source in (names, vars(torch))]
        for instruction in dis.get_instructions(code):
            self.found.update(_run_by(instruction))
            if instruction.opname == "IMPORT_NAME" and instruction.argval.startswith("torch"):
                modules.append(sys.modules.get(instruction.argval))
                self.anything |= modules[-1] is None  # what isn't imported yet can't be read
        searched = [m for m in modules if isinstance(m, ModuleType) and m.__name__.startswith("torch.")]
        for name in code.co_names:
            self.found.update(_BUILTINS.get(name, ()))
            local = names.get(name)
            if isinstance(local, type) and local.__module__ == names["__name__"]:
                self._class(local)
            self._value(local)
            for namespace in (*_NAMESPACES, *searched):
                self._value(_member(namespace, name))
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._code(constant, names)

    def _class(self, kind: type) -> None:
        for member in vars(kind).values():
            inner = getattr(member, "__func__", member)
            if isinstance(inner, FunctionType):
                self.function(inner)

    def _value(self, value: Any) -> None:
        if isinstance(value, (GetSetDescriptorType, property)):
            value = value.__get__
        elif isinstance(value, CustomOpDef):
            value = value._opoverload
        if isinstance(value, type) or not callable(value) or value in _MACHINERY:
            return
        facts = op_facts(value)
        if not isinstance(value, FunctionType):
            self.found.update((facts.layer_type,) if facts else ())
        elif not openable(value):
            self.function(value)
        elif facts is not None:
            self.found.add(facts.layer_type)
            if facts.composite:
                self.function(value)


def _parameters(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _member(namespace: Any, name: str) -> Any:
    # A module is not asked by `getattr`, because torch imports some of its own only then.
    return vars(namespace).get(name) if isinstance(namespace, ModuleType) else getattr(namespace, name, None)


def _run_by(instruction: dis.Instruction) -> tuple[str, ...]:
    """The ops that one instruction may run."""
    name, shown = instruction.opname, instruction.argrepr
    if name == "COMPARE_OP":
        return _COMPARISONS.get(shown.removeprefix("bool(").removesuffix(")"), ())
    if name.startswith(("BINARY_", "INPLACE_")):
        if shown == "[]":
            return ("getitem",)
        symbol = shown.removesuffix("=") if name == "BINARY_OP" else name.partition("_")[2]
        if symbol in _SYMBOLS:
            return (canonical(f"__{_SYMBOLS[symbol]}__"),)
    found = _INSTRUCTIONS.get(name)
    return (found,) if found else ()
