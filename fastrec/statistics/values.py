"""Values of one site as an array whose middle axis is its units.

>>> import torch
>>> by_units(torch.zeros(4, 8, 16, 5, 5), axis=1).shape  # 4 records of 8 images with 16 channels
(32, 16, 25)
>>> by_units(torch.zeros(4, 8, 10), axis=1).shape  # 4 records of 8 rows with 10 units
(32, 10)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec._torch.tensors import outside_torch_modes

Array = npt.NDArray[Any]

# What 32 bits hold exactly is measured in 32 bits, which is twice as quick.
_NARROW = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16, torch.float32})


def real_numbers(values: Tensor) -> Tensor:
    """Values as numbers of 32 or 64 bits on the CPU; of complex numbers the absolute values."""
    with outside_torch_modes():
        values = values.detach().cpu()
        if values.dtype == torch.complex32:
            values = values.to(torch.complex64)
        if values.is_complex():
            values = values.abs()
        narrow = values.dtype in _NARROW or (values.dtype.is_floating_point and values.dtype.itemsize < 4)
        return values.to(torch.float32 if narrow else torch.float64).resolve_neg()


def by_units(values: Tensor, axis: int) -> Array:
    """Records of one shape as an array [outer, units, inner], or [rows, units] where nothing comes after the units.

    Arguments:
        values: [records, *shape].
        axis: the axis of ``shape`` that counts the units; -1 where it has none, and each value is one unit.
    """
    shape = values.shape[1:]
    numbers = real_numbers(values).contiguous().numpy()
    if axis < 0:
        return numbers.reshape(-1, 1)
    outer, inner = len(values) * math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    if inner == 1:
        return numbers.reshape(outer, shape[axis])
    return numbers.reshape(outer, shape[axis], inner)


def rows_of(array: Array, step: int = 1) -> Array:
    """The rows of such an array, [rows, units]; or each ``step``-th of them."""
    if array.ndim == 3:
        array = np.moveaxis(array, 1, 2).reshape(-1, array.shape[1])
    return array[::step]
