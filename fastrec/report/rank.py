"""The effective rank of the rows of a stretch of a run, from a matrix that is added up.

>>> rows = np.ones((8, 3)) * np.array([1.0, 2.0, 3.0])
>>> effective_rank(gram_of(rows))
1

The singular values of a matrix are the roots of the eigenvalues of its Gram matrix, which is as small as the units are
few whatever the rows, and adds up over stretches. The smallest ones lose half their digits by that, which a measure
that leaves out the smallest percent does not see.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastrec.report.measures import DELTA

Gram = npt.NDArray[np.float64]

ROWS_PER_UNIT = 4
MIN_ROWS = 1024


def rank_rows(units: int) -> int:
    """How many rows a rank is taken of at most."""
    return max(MIN_ROWS, ROWS_PER_UNIT * units)


def gram_of(rows: npt.NDArray[Any]) -> Gram:
    """The Gram matrix of rows, [units, units]."""
    wide = rows.astype(np.float64)
    gram: Gram = wide.T @ wide
    return gram


def effective_rank(gram: Gram, delta: float = DELTA) -> int:
    """The least k for which the k largest singular values make up 1 - delta of their sum; 0 where all are 0."""
    largest_first = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0.0))[::-1]
    sums = np.cumsum(largest_first)
    if not len(sums) or not sums[-1] > 0:
        return 0
    return int(np.searchsorted(sums, (1 - delta) * sums[-1], side="left")) + 1
