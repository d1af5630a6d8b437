"""Reads torch's source for the ops that may run inside its composites, and writes `fastrec/ops/composites.json`.

    make composites        # or: python -m tests.ops.scan_composites

The installed release of torch is added to those that the table holds for; what other releases may run inside a function
stays in its line. So run it once in an environment of each release.

The scan reads names and operators and follows them into the functions of torch that they may mean. It takes too much
rather than too little: a name stands for whatever torch has under it anywhere, so that the `add` of a Python set counts
as `torch.add`. Where a function calls what it is handed, or imports what isn't loaded, anything may run.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import CodeType, FunctionType, GetSetDescriptorType, ModuleType
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn, overrides
from torch._library.custom_ops import CustomOpDef
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fastrec.ops.composites import ANYTHING, TABLE_PATH, TORCH_RELEASE, Composites, qualified_name, read_composites
from fastrec.ops.facts import ASKS_FOR_A_MODE, closed_over, names_in, op_facts, openable
from fastrec.ops.table import canonical

# Where an attribute's name may lead; the modules that a function names itself are searched too.
NAMESPACES = (Tensor, torch, torch._C._VariableFunctions, torch._C._nn, F, torch.linalg, torch.fft, torch.special)

# Parameters that are functions to call, by their names: annotations can't be relied on to be readable.
CALLABLE_PARAMETER = re.compile("func|fn|callback|tracker")

MACHINERY = (overrides.handle_torch_function, *ASKS_FOR_A_MODE)

OPERATORS = {
    **{ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.MatMult: "matmul", ast.Div: "truediv", ast.Mod: "mod"},
    **{ast.FloorDiv: "floordiv", ast.Pow: "pow", ast.BitAnd: "and", ast.BitOr: "or", ast.BitXor: "xor"},
    **{ast.LShift: "lshift", ast.RShift: "rshift", ast.USub: "neg", ast.UAdd: "pos", ast.Invert: "invert"},
}

# `a < b` may be answered by `b > a`.
COMPARISONS = {
    **dict.fromkeys((ast.Lt, ast.Gt), ("lt", "gt")),
    **dict.fromkeys((ast.LtE, ast.GtE), ("le", "ge")),
    **{ast.Eq: ("eq",), ast.NotEq: ("ne",)},
}

BUILTINS = {
    "sum": ("unbind", "add"),
    "max": ("unbind", "gt"),
    "min": ("unbind", "lt"),
    "sorted": ("unbind", "lt"),
    "divmod": ("floordivide", "remainder"),
    "reversed": ("flip",),
    **dict.fromkeys(("list", "tuple", "set", "iter", "zip", "map", "enumerate", "any", "all"), ("unbind",)),
}


def scanned_functions() -> list[FunctionType]:
    """The functions of torch whose insides an engine asks for."""
    overridable = {f for group in overrides.get_overridable_functions().values() for f in group}
    public = {f for name, f in vars(F).items() if isinstance(f, FunctionType) and not name.startswith("_")}
    composites = {f for f in overridable | public if openable(f) and (facts := op_facts(f)) and facts.composite}
    # A layer's activation may be a function that hands itself to no mode, such as `F.tanh`.
    transparent = {f for f in public if not openable(f) and f.__module__ == F.__name__}
    return sorted(composites | transparent, key=qualified_name)


def scanned_modules() -> list[type[nn.Module]]:
    """Torch's own classes of modules, which are the children of those with a fused path."""
    kinds = {getattr(nn, name) for name in nn.modules.__all__} | {NonDynamicallyQuantizableLinear}
    # A lazy module makes its parameters in the first pass, and then becomes one of another class.
    modules = {kind for kind in kinds if issubclass(kind, nn.Module) and not issubclass(kind, LazyModuleMixin)}
    return sorted(modules, key=qualified_name)


class Scan:
    """What has been read so far, from one function through all those that it may call.

    Arguments:
        func: where to begin.
        kind: the class whose methods it may call, if it is a method.
    """

    def __init__(self, func: FunctionType, kind: type | None = None) -> None:
        self.layer_types: set[str] = set()
        self.runs_anything = False
        self._kind = kind
        self._seen: set[FunctionType] = set()
        self._follow(func)

    def _follow(self, func: FunctionType) -> None:
        # `torch` itself holds checks and symbolic numbers, whose code leads everywhere.
        if func in self._seen or not (func.__module__ or "").startswith("torch."):
            return
        self._seen.add(func)
        self.runs_anything |= openable(func) and any(map(CALLABLE_PARAMETER.search, parameters(func.__code__)))
        self._read(func)
        for value in closed_over(func):
            self._take(value)

    def _read(self, func: FunctionType) -> None:
        tree, names, variables = body_of(func), names_in(func.__code__), func.__globals__
        self.layer_types.update(operators_in(tree))
        modules = [module for name in names for module in (variables.get(name), vars(torch).get(name))]
        for imported in imports_in(tree):
            modules.append(sys.modules.get(imported))
            self.runs_anything |= modules[-1] is None  # what isn't imported yet can't be read
        searched = [m for m in modules if isinstance(m, ModuleType) and m.__name__.startswith("torch.")]
        for name in names:
            self.layer_types.update(BUILTINS.get(name, ()))
            value = variables.get(name)
            if isinstance(value, type) and value.__module__ == variables["__name__"]:
                self._follow_methods(value)
            self._take(value)
            for namespace in (*NAMESPACES, *searched):
                self._take(member(namespace, name))
            self._follow_method(getattr(self._kind, name, None))

    def _follow_methods(self, kind: type) -> None:
        for attribute in vars(kind).values():
            self._follow_method(attribute)

    def _follow_method(self, attribute: Any) -> None:
        method = attribute.fget if isinstance(attribute, property) else getattr(attribute, "__func__", attribute)
        if isinstance(method, FunctionType):
            self._follow(method)

    def _take(self, value: Any) -> None:
        """What a name means: an op, or a function to follow."""
        if isinstance(value, (GetSetDescriptorType, property)):
            value = value.__get__
        elif isinstance(value, CustomOpDef):
            value = value._opoverload
        if isinstance(value, type) or not callable(value) or value in MACHINERY:
            return
        facts = op_facts(value)
        if not isinstance(value, FunctionType):
            self.layer_types.update((facts.layer_type,) if facts else ())
        elif not openable(value):
            self._follow(value)
        elif facts is not None:
            self.layer_types.add(facts.layer_type)
            if facts.composite:
                self._follow(value)


def body_of(func: FunctionType) -> ast.FunctionDef:
    """The syntax of a function, without the decorators, annotations and defaults, which run when it is defined."""
    # By the code, because the source of a decorated function would be that of the function inside.
    tree = ast.parse(dedent(inspect.getsource(func.__code__))).body[0]
    assert isinstance(tree, ast.FunctionDef), func
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.decorator_list, node.returns, node.args = [], None, ast.arguments([], [], None, [], [], None, [])
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(...)
    return tree


def operators_in(tree: ast.AST) -> Iterator[str]:
    """The layer types of the ops that are written as syntax; to walk over a tensor is to unbind it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.AugAssign):
            yield canonical(f"__{OPERATORS[type(node.op)]}__")
        elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.Not):
            if not isinstance(node.operand, ast.Constant):
                yield canonical(f"__{OPERATORS[type(node.op)]}__")
        elif isinstance(node, ast.Compare):
            yield from (layer_type for sign in node.ops for layer_type in COMPARISONS.get(type(sign), ()))
        elif isinstance(node, ast.For | ast.comprehension | ast.Starred):
            yield "unbind"
        elif isinstance(node, ast.Tuple | ast.List) and isinstance(node.ctx, ast.Store):
            yield "unbind"
        elif isinstance(node, ast.Subscript):
            yield "getitem" if isinstance(node.ctx, ast.Load) else "setitem"
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript):
            yield "getitem"


def imports_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("torch"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            yield node.module or ""


def parameters(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def member(namespace: Any, name: str) -> Any:
    # A module is not asked by `getattr`, because torch imports some of its own only then.
    return vars(namespace).get(name) if isinstance(namespace, ModuleType) else getattr(namespace, name, None)


def merged(table: Composites) -> Composites:
    """The table with what the installed torch may run."""
    others = set(table.releases) - {TORCH_RELEASE}
    inside = {name: set(layer_types.split()) for name, layer_types in table.inside.items()} if others else {}
    scans = {qualified_name(func): Scan(func) for func in scanned_functions()}
    scans |= {qualified_name(kind): Scan(kind.forward, kind) for kind in scanned_modules()}
    for name, scan in scans.items():
        inside.setdefault(name, set()).update({ANYTHING} if scan.runs_anything else scan.layer_types)
    lines = {name: ANYTHING if ANYTHING in inside[name] else " ".join(sorted(inside[name])) for name in sorted(inside)}
    return Composites(releases=list(dict.fromkeys([*table.releases, TORCH_RELEASE])), inside=lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Add to the table what the installed torch may run.")
    parser.add_argument("path", nargs="?", type=Path, default=TABLE_PATH, help="the table")
    parser.add_argument("--check", action="store_true", help="fail where it lacks something, and leave it as it is")
    args = parser.parse_args()
    table = msgspec.json.format(msgspec.json.encode(merged(read_composites(args.path))), indent=2) + b"\n"
    if not args.check:
        args.path.write_bytes(table)
    elif table != args.path.read_bytes():
        sys.exit(f"{args.path.name} lacks ops that the installed torch may run; run `make composites`")


if __name__ == "__main__":
    main()
