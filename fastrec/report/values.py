"""Values of one site as an array whose middle axis is its units.

>>> by_units(np.zeros((4, 8, 16, 5, 5)), axis=1).shape  # 4 records of 8 images with 16 channels
(32, 16, 25)
>>> by_units(np.zeros((4, 8, 10)), axis=1).shape  # 4 records of 8 rows with 10 units
(32, 10)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def by_units(values: Array, axis: int) -> Array:
    """Records of one shape as an array [outer, units, inner], or [rows, units] where nothing comes after the units.

    Arguments:
        values: [records, *shape], contiguous.
        axis: the axis of ``shape`` that counts the units; -1 where it has none, and each value is one unit.
    """
    shape = values.shape[1:]
    if axis < 0:
        return values.reshape(-1, 1)
    outer, inner = len(values) * math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    if inner == 1:
        return values.reshape(outer, shape[axis])
    return values.reshape(outer, shape[axis], inner)


def rows_of(array: Array, step: int = 1) -> Array:
    """The rows of such an array, [rows, units]; or each ``step``-th of them."""
    if array.ndim == 3:
        array = np.moveaxis(array, 1, 2).reshape(-1, array.shape[1])
    return array[::step]
