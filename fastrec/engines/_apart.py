"""Copies of values that are held for the end of a pass, by which time others may have written to the values."""

from __future__ import annotations

import torch
from torch import Tensor


def apart(value: Tensor) -> Tensor:
    """A copy of a value that tells the same of it."""
    with torch._C.DisableTorchFunction():
        copy = value.clone()
        # Where gradients are off a copy requires none, and a record says whether its value does.
        return copy.requires_grad_() if value.requires_grad else copy
