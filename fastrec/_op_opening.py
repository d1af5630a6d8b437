"""Run a Python function of torch so that a function mode sees the ops that it is made of."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import overrides

from fastrec._op_table import canonical

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
        # may be built on its own variant (`max_pool2d` on `max_pool2d_with_indices`) or, if it is a method, on the
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
