"""A histogram of log-spaced cells, quick to fill and exact to merge, from which quantiles are read.

>>> counts = cell_counts(np.array([0.0, 1.0, -3.0, 5.0], np.float32))
>>> int(counts.sum()), quantiles(counts, [0.5], -3.0, 5.0).tolist()
(4, [0.0])

To sort a value into a cell by comparing takes 35 ns, to count it by its bits takes 2. The upper half of a float32
(sign, exponent and seven bits of the mantissa, which is a bfloat16) orders the numbers as they are ordered, so the
edges of the cells are rounded to such numbers, and counting 65,536 patterns says exactly how many values each cell has.
Counts of two stretches of a run are added, which keeps nothing of the values and loses nothing of the counts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

SIDE = 200
"""Cells of each sign."""

CELLS = 2 * SIDE + 1
"""Cells from the lowest on: negative ones, one for 0 and what is too small, positive ones."""

LOW, HIGH = 1e-6, 1e6

_UPPER = 1 if sys.byteorder == "little" else 0
_INFINITY = 0x7F80  # where the patterns of infinity and NaN begin
_SIGN = 0x8000


def _edge_patterns() -> npt.NDArray[np.int64]:
    """The upper halves of the lower edges of the positive cells."""
    bits = np.geomspace(LOW, HIGH, SIDE + 1).astype(np.float32).view(np.uint32).astype(np.int64)
    return (bits + 0x8000) >> 16


_PATTERNS = _edge_patterns()
EDGES = (_PATTERNS.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
"""The edges of the positive cells; the last cell takes in all that is larger."""

# Where, among all 65,536 patterns in their order, the next cell begins: positive numbers, then negative ones.
_STARTS = np.concatenate(
    [[0], _PATTERNS[:-1], [_INFINITY], [_SIGN], _SIGN + _PATTERNS[:-1], [_SIGN + _INFINITY]]
).astype(np.int64)

# The cell of each pattern; one more for what is not finite.
_CELL_OF = np.full(1 << 16, CELLS, np.int64)
_CELL_OF[:_INFINITY] = SIDE + np.searchsorted(_PATTERNS[:-1], np.arange(_INFINITY), side="right")
_CELL_OF[_SIGN : _SIGN + _INFINITY] = 2 * SIDE - _CELL_OF[:_INFINITY]

FEW = 1 << 15
"""Up to here the patterns are fewer than those that there could be, and it is quicker to look each one up."""


def cell_counts(values: npt.NDArray[np.float32]) -> Counts:
    """How many of some values each cell has; the values are finite, float32 and contiguous."""
    halves = values.reshape(-1).view(np.uint16)[_UPPER::2]
    if len(halves) <= FEW:
        return np.bincount(_CELL_OF.take(halves), minlength=CELLS)
    by_pattern = np.bincount(halves, minlength=1 << 16)
    pieces = np.add.reduceat(by_pattern, _STARTS)
    counts = np.empty(CELLS, np.int64)
    positive, negative = pieces[: SIDE + 2], pieces[SIDE + 2 :]
    counts[SIDE] = positive[0] + negative[0]
    counts[SIDE + 1 :] = positive[1 : SIDE + 1]
    counts[:SIDE] = negative[SIDE:0:-1]
    return counts


def cell_edges(least: float, most: float) -> npt.NDArray[np.float64]:
    """The edges of all cells from the lowest on, the outermost ones at the extremes of what was counted."""
    edges = np.concatenate([-EDGES[::-1], EDGES])
    edges[0], edges[-1] = min(edges[0], least), max(edges[-1], most)
    return edges


def quantiles(counts: Counts, shares: Sequence[float], least: float, most: float) -> npt.NDArray[np.float64]:
    """The values below which these shares of what was counted lie; NaN where nothing was.

    Each lies in the cell in which the exact one lies, and between the extremes, ``least`` and ``most``. Inside of a
    cell the values are taken to be spread evenly; those of the middle cell are taken for 0.
    """
    total = int(counts.sum())
    if not total:
        return np.full(len(shares), np.nan)
    edges = cell_edges(least, most)
    ends = np.cumsum(counts)
    ranks = np.maximum(np.asarray(shares, np.float64) * total, np.finfo(np.float64).tiny)
    cells = np.minimum(np.searchsorted(ends, ranks, side="left"), CELLS - 1)
    into = (ranks - (ends[cells] - counts[cells])) / counts[cells]
    found: npt.NDArray[np.float64] = edges[cells] + into.clip(0, 1) * (edges[cells + 1] - edges[cells])
    found[cells == SIDE] = 0.0
    return found.clip(least, most)


def merged(counts: Sequence[Any]) -> Counts:
    """The counts of several stretches together."""
    return np.sum(counts, axis=0, dtype=np.int64) if len(counts) else np.zeros(CELLS, np.int64)
