"""Predicates of the value itself: its shape and its dtype."""

from __future__ import annotations

from types import EllipsisType
from typing import cast

import torch

from fastrec._errors import PredicateError, did_you_mean
from fastrec.predicates._answers import literal
from fastrec.predicates._globs import Atom
from fastrec.predicates._protocol import Context

Size = int | None

DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class Shape(Atom, frozen=True):
    """See ``shape``. ``tail`` is what follows the Ellipsis, None without one."""

    head: tuple[Size, ...]
    tail: tuple[Size, ...] | None
    reads = frozenset({"tensor_shape"})

    def decide(self, ctx: Context) -> bool:
        dims = ctx.tensor_shape
        if self.tail is None:
            return len(dims) == len(self.head) and _fits(self.head, dims)
        if len(dims) < len(self.head) + len(self.tail):
            return False
        return _fits(self.head, dims) and _fits(self.tail, dims[len(dims) - len(self.tail) :])

    def __repr__(self) -> str:
        dims: tuple[object, ...] = self.head if self.tail is None else (*self.head, ..., *self.tail)
        return f"shape({', '.join(map(literal, dims))})"


class Dtype(Atom, frozen=True):
    """See ``dtype``."""

    dtypes: tuple[torch.dtype, ...]
    reads = frozenset({"tensor_dtype"})

    def decide(self, ctx: Context) -> bool:
        return ctx.tensor_dtype in self.dtypes

    def __repr__(self) -> str:
        return f"dtype({', '.join(map(repr, self.dtypes))})"


def shape(*dims: int | EllipsisType | None) -> Shape:
    """Values of a shape.

    >>> from fastrec.predicates import shape
    >>> shape(None, 64), shape(..., 3, 3), shape()
    (shape(None, 64), shape(..., 3, 3), shape())

    Arguments:
        dims: sizes one by one. None is any size, ``...`` (at most once) any number of dimensions.
            ``shape()`` is a scalar.

    Raises PredicateError for anything else.
    """
    for dim in cast("tuple[object, ...]", dims):
        if isinstance(dim, bool) or not (dim is None or dim is ... or (isinstance(dim, int) and dim >= 0)):
            raise PredicateError(
                f"shape() got {dim!r} ({type(dim).__name__}); give sizes one by one, None for any size, "
                "... for any number of dimensions: shape(None, 64)"
            )
    if dims.count(...) > 1:
        raise PredicateError(f"shape({', '.join(map(literal, dims))}): give ... at most once")
    if ... not in dims:
        return Shape(cast("tuple[Size, ...]", dims), None)
    ellipsis = dims.index(...)
    return Shape(cast("tuple[Size, ...]", dims[:ellipsis]), cast("tuple[Size, ...]", dims[ellipsis + 1 :]))


def dtype(*dtypes: torch.dtype | str) -> Dtype:
    """Values of some dtypes.

    >>> import torch
    >>> from fastrec.predicates import dtype
    >>> dtype(torch.float32, "bfloat16")
    dtype(torch.float32, torch.bfloat16)

    Arguments:
        dtypes: torch dtypes or their names.

    Raises PredicateError for anything else, and without any.
    """
    if not dtypes:
        raise PredicateError("dtype() needs at least one dtype, such as dtype(torch.float32)")
    return Dtype(tuple(dict.fromkeys(map(_torch_dtype, dtypes))))


def _torch_dtype(value: object) -> torch.dtype:
    if isinstance(value, torch.dtype):
        return value
    if not isinstance(value, str):
        raise PredicateError(f"dtype() takes torch dtypes or their names, not {value!r} ({type(value).__name__})")
    name = value.removeprefix("torch.")
    if name not in DTYPES:
        raise PredicateError(f"dtype({value!r}) is not a torch dtype; {did_you_mean(name, DTYPES)}")
    return DTYPES[name]


def _fits(sizes: tuple[Size, ...], dims: tuple[int, ...]) -> bool:
    for size, dim in zip(sizes, dims, strict=False):
        if size is not None and size != dim:
            return False
    return True
