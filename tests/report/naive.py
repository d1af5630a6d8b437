"""The measures as their definitions say, value by value and without haste."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastrec.report.measures import DELTA, SIGMOID_EDGES, TANH_EDGE, TAUS


def rows(values: list[Tensor], axis: int) -> np.ndarray:
    """All inputs, [rows, units], in double precision; of complex numbers the absolute values."""
    found = []
    for value in values:
        plain = value.to(torch.complex64) if value.dtype == torch.complex32 else value
        plain = (plain.abs() if plain.is_complex() else plain).double()
        if value.ndim == 0:
            found.append(plain.reshape(1, 1).numpy())
        else:
            found.append(plain.movedim(axis, -1).reshape(-1, value.shape[axis]).numpy())
    return np.concatenate(found)


def measures(values: list[Tensor], axis: int, activation: bool = True, saturating: str = "") -> dict[str, float]:
    """What is exact of the measures; quantiles are left to the tests of the histogram."""
    table = rows(values, axis)
    finite = table[np.isfinite(table)]
    found = {
        "zeros": float((table == 0).mean()),
        "nan": float(np.isnan(table).sum()),
        "inf": float(np.isinf(table).sum()),
        "dead_units": float((table == 0).all(axis=0).mean()),
    }
    if finite.size:
        found |= {"mean": finite.mean(), "std": finite.std(), "min": finite.min(), "max": finite.max()}
    whole = table[np.isfinite(table).all(axis=1)]
    if len(whole):
        found["norm"] = float(np.sqrt((whole**2).sum(axis=1)).mean())
        singular = np.linalg.svd(whole, compute_uv=False)
        found["rank"] = float(rank(singular))
    if activation:
        sizes = [np.abs(column[np.isfinite(column)]) for column in table.T]
        means = np.array([size.mean() if size.size else 0.0 for size in sizes])
        for tau in TAUS:
            scores = means / means.mean() if means.mean() > 0 else np.zeros_like(means)
            found[f"dormant_{tau:g}"] = float((scores <= tau).mean())
    if saturating and finite.size:
        low, high = SIGMOID_EDGES
        flat = np.abs(finite) > TANH_EDGE if saturating == "tanh" else (finite < low) | (finite > high)
        found["saturated"] = float(flat.mean())
    return {name: float(value) for name, value in found.items()}


def rank(singular: np.ndarray) -> int:
    """Kumar et al. 2021: the least k whose k largest singular values make up 1 - delta of the sum."""
    total = singular.sum()
    if not total > 0:
        return 0
    return next(k + 1 for k in range(len(singular)) if singular[: k + 1].sum() >= (1 - DELTA) * total - 1e-12 * total)


def vector(values: list[Tensor], axis: int) -> np.ndarray:
    """The mean of each unit."""
    table = rows(values, axis)
    return np.array([column[np.isfinite(column)].mean() if np.isfinite(column).any() else 0.0 for column in table.T])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the angle between two vectors; NaN where one is 0."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else math.nan
