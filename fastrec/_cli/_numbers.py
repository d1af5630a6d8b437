"""What the values of a tensor are like: statistics, taken stretch by stretch, and a look at the first of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec
import torch
from torch import Tensor

ROWS, COLUMNS = 4, 8


class Statistics(msgspec.Struct, frozen=True):
    """Of all numbers that are finite; the others are counted. Of complex numbers, the absolute values."""

    count: int
    mean: float | None
    std: float | None
    least: float | None
    most: float | None
    zeros: int
    nans: int
    infinite: int


def statistics_of(pieces: Iterable[Tensor]) -> Statistics:
    """The statistics of many tensors together, of which one is looked at at a time.

    >>> statistics_of([torch.tensor([1.0, float("nan")]), torch.tensor([3.0])])
    Statistics(count=3, mean=2.0, std=1.0, least=1.0, most=3.0, zeros=0, nans=1, infinite=0)
    """
    count = finite = zeros = nans = 0
    mean = spread = 0.0
    least, most = math.inf, -math.inf
    for piece in pieces:
        values = as_double(piece).reshape(-1)
        count += values.numel()
        nans += int(values.isnan().sum())
        zeros += int((values == 0).sum())
        values = values[values.isfinite()]
        own = values.numel()
        if not own:
            continue
        own_mean = float(values.mean())
        apart, together = own_mean - mean, finite + own
        # Chan, Golub and LeVeque 1979: variances of parts put together without loss of precision.
        spread += float((values - own_mean).square().sum()) + apart * apart * finite * own / together
        mean, finite = mean + apart * own / together, together
        least, most = min(least, float(values.min())), max(most, float(values.max()))
    infinite = count - finite - nans
    if not finite:
        return Statistics(count, None, None, None, None, zeros, nans, infinite)
    return Statistics(count, mean, math.sqrt(spread / finite), least, most, zeros, nans, infinite)


def preview(value: Tensor) -> list[str]:
    """The first rows and columns of a value, as text.

    >>> preview(torch.arange(24.0).reshape(2, 12))
    [' 0  1  2  3  4  5  6  7 ...', '12 13 14 15 16 17 18 19 ...']
    """
    rows = value.reshape(-1, value.shape[-1]) if value.ndim and value.numel() else value.reshape(1, -1)
    cells = [[_told(cell) for cell in row[:COLUMNS].tolist()] for row in _plain(rows[:ROWS])]
    width = max((len(cell) for row in cells for cell in row), default=0)
    more = " ..." if rows.shape[1] > COLUMNS else ""
    lines = [" ".join(cell.rjust(width) for cell in row) + more for row in cells]
    return lines + (["..."] if rows.shape[0] > ROWS else [])


def as_double(value: Tensor) -> Tensor:
    """Real numbers of 64 bits."""
    plain = _plain(value)
    return (plain.abs() if plain.is_complex() else plain).double()


def _plain(value: Tensor) -> Tensor:
    """In a dtype that torch can calculate with."""
    if value.dtype == torch.complex32:
        return value.to(torch.complex64)
    if value.dtype.is_floating_point and value.dtype.itemsize < 4:
        return value.float()
    return value


def _told(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float | complex) else str(cell)
