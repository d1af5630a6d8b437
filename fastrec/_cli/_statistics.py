"""Statistics of many values together, and a look at one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec
import torch
from torch import Tensor

MAX_ROWS, MAX_COLUMNS = 4, 8


class Statistics(msgspec.Struct, frozen=True):
    """Of all numbers that are finite; the others are counted. Complex numbers count by their absolute values."""

    count: int
    mean: float | None
    std: float | None
    least: float | None
    most: float | None
    zeros: int
    nans: int
    infinite: int


def statistics_of(values: Iterable[Tensor]) -> Statistics:
    """The statistics of all numbers in some tensors, of which only one is in memory at a time.

    >>> statistics_of([torch.tensor([1.0, float("nan")]), torch.tensor([3.0])])
    Statistics(count=3, mean=2.0, std=1.0, least=1.0, most=3.0, zeros=0, nans=1, infinite=0)
    """
    count = finite = zeros = nans = 0
    mean = squares = 0.0
    least, most = math.inf, -math.inf
    for value in values:
        numbers = as_double(value).reshape(-1)
        count += numbers.numel()
        nans += int(numbers.isnan().sum())
        zeros += int((numbers == 0).sum())
        numbers = numbers[numbers.isfinite()]
        n = numbers.numel()
        if not n:
            continue
        value_mean = float(numbers.mean())
        difference, total = value_mean - mean, finite + n
        # Chan, Golub and LeVeque 1979: the squares of two parts put together without loss of precision.
        squares += float((numbers - value_mean).square().sum()) + difference * difference * finite * n / total
        mean, finite = mean + difference * n / total, total
        least, most = min(least, float(numbers.min())), max(most, float(numbers.max()))
    infinite = count - finite - nans
    if not finite:
        return Statistics(count, None, None, None, None, zeros, nans, infinite)
    return Statistics(count, mean, math.sqrt(squares / finite), least, most, zeros, nans, infinite)


def format_statistics(statistics: Statistics) -> str:
    """The statistics on one line."""
    text = f"{statistics.count:,} numbers"
    if statistics.mean is not None:
        text += f", mean {statistics.mean:.4g}, std {statistics.std:.4g}"
        text += f", from {statistics.least:.4g} to {statistics.most:.4g}"
    special = {"zero": statistics.zeros, "NaN": statistics.nans, "infinite": statistics.infinite}
    return text + "".join(f", {count:,} {name}" for name, count in special.items() if count)


def preview(value: Tensor) -> list[str]:
    """The first rows and columns of a value, as text.

    >>> preview(torch.arange(24.0).reshape(2, 12))
    [' 0  1  2  3  4  5  6  7 ...', '12 13 14 15 16 17 18 19 ...']
    """
    rows = value.reshape(-1, value.shape[-1]) if value.ndim and value.numel() else value.reshape(1, -1)
    cells = [[_format_cell(cell) for cell in row[:MAX_COLUMNS].tolist()] for row in _computable(rows[:MAX_ROWS])]
    width = max((len(cell) for row in cells for cell in row), default=0)
    ellipsis = " ..." if rows.shape[1] > MAX_COLUMNS else ""
    lines = [" ".join(cell.rjust(width) for cell in row) + ellipsis for row in cells]
    return lines + (["..."] if rows.shape[0] > MAX_ROWS else [])


def as_double(value: Tensor) -> Tensor:
    """The numbers of a tensor as real numbers of 64 bits."""
    value = _computable(value)
    return (value.abs() if value.is_complex() else value).double()


def _computable(value: Tensor) -> Tensor:
    """The value in a dtype that torch can calculate with; for half of complex numbers and float8 it can't."""
    if value.dtype == torch.complex32:
        return value.to(torch.complex64)
    if value.dtype.is_floating_point and value.dtype.itemsize < 4:
        return value.float()
    return value


def _format_cell(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float | complex) else str(cell)
