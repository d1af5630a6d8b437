"""What ``rec.step`` takes, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastrec._errors import StepError


def step_columns(columns: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Scalars and per-environment values as numpy arrays of numbers; anything else is a StepError."""
    found = {}
    for name, value in columns.items():
        array = np.array(_on_host(value) if isinstance(value, torch.Tensor) else value)
        if array.dtype.kind not in "biuf" or array.ndim > 1:
            raise StepError(f"step({name}={value!r}): give a number, a bool, or an array with one per environment")
        found[name] = array
    return found


def _on_host(value: torch.Tensor) -> npt.NDArray[Any]:
    """A tensor's numbers; bfloat16, which numpy lacks, as float32."""
    value = value.detach().cpu()
    array: npt.NDArray[Any] = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    return array
