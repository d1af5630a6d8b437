"""Whether two values are the same.

largest_difference(saved, value)      # 0.0, 1.2e-7 (rounding), or why they are not the same
differs(saved, value)                 # whether any bit differs
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_ROUNDING = 100
"""How many units in the last place of its largest number a value may be off, because kernels round differently."""


def largest_difference(saved: Tensor, value: Tensor, tolerance: float | None = None) -> str | float:
    """Why two values are not the same, or how far apart they are by rounding: 0.0 if they are equal.

    ``tolerance`` is relative to the largest number; None allows for rounding.
    """
    if saved.shape != value.shape:
        return f"its shape is {tuple(value.shape)}, and {tuple(saved.shape)} was saved"
    if saved.dtype != value.dtype:
        return f"its dtype is {value.dtype}, and {saved.dtype} was saved"
    if saved.device != value.device:
        value = value.to(saved.device)
    if torch.equal(saved, value):
        return 0.0
    if not (saved.is_floating_point() or saved.is_complex()):
        return f"{int((saved != value).sum())} of {saved.numel()} elements differ"
    unequal = (saved != value) & ~(saved.isnan() & value.isnan())
    if not unequal.any():
        return 0.0
    wide = torch.complex128 if saved.is_complex() else torch.float64
    a, b = saved.detach()[unequal].to(wide), value.detach()[unequal].to(wide)
    if not (a.isfinite().all() and b.isfinite().all()):
        return f"{int(unequal.sum())} of {saved.numel()} elements differ, some of them are infinite or NaN"
    finite = saved[saved.isfinite()]
    scale = float(finite.abs().max()) or 1.0
    relative = float((a - b).abs().max()) / scale
    if relative <= (MAX_ROUNDING * torch.finfo(saved.dtype).eps if tolerance is None else tolerance):
        return relative
    return f"{int(unequal.sum())} of {saved.numel()} elements differ, by up to {relative:.2g} of the largest"


def differs(saved: Tensor, value: Tensor) -> bool:
    """Whether two values differ at all; NaN is equal to NaN."""
    if saved.shape != value.shape or saved.dtype != value.dtype:
        return True
    if torch.equal(saved, value):
        return False
    return (
        saved.is_quantized
        or not saved.isnan().any()
        or not torch.allclose(saved, value, rtol=0.0, atol=0.0, equal_nan=True)
    )
