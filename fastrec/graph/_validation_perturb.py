"""Random values in place of a parent's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import torch
from torch import Tensor

# Functions that look things up: another number than those they got may be out of range.
LOOKS_UP = re.compile(
    "embedding|gather|index|scatter|take|getitem|setitem|onehot|bincount|repeatinterleave|pack|ctc|nll|crossentropy"
    "|select|put|slice|narrow|split|roll|tile|repeat|segment|searchsorted"
)
# Functions whose arguments say how much memory they take.
SIZES_ITS_RESULT = re.compile("arange|linspace|logspace|^full|^zeros|^ones|^empty|repeat|bincount|onehot|pad|tile")
ABOUT_NAN = re.compile("nan|isinf|isposinf|isneginf|isfinite")


def replacements(value: Tensor, layer_type: str, generator: torch.Generator) -> Iterator[Tensor]:
    """Random values of the form of a given one, ever less like it.

    Integers stay among those from zero to the largest given where the function may look something up by them.
    """
    if value.numel() == 0:
        return
    if value.dtype == torch.bool:
        yield from _booleans(value, generator)
    elif value.is_floating_point() or value.is_complex():
        yield from _floats(value, layer_type, generator)
    else:
        yield from _integers(value, layer_type, generator)


def _booleans(value: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    yield ~value
    yield _uniform(value, generator) < 0.5
    yield torch.ones_like(value)
    yield torch.zeros_like(value)


def _floats(value: Tensor, layer_type: str, generator: torch.Generator) -> Iterator[Tensor]:
    scale = float(value.abs().max())
    if not math.isfinite(scale):
        scale = float(value.abs().nan_to_num(0.0, 0.0, 0.0).max())
    scale = min(scale or 1.0, 1e4)
    noise = _normal(value, generator)
    yield (noise * scale).to(value.dtype)
    if SIZES_ITS_RESULT.search(layer_type):
        return
    for more in (max(scale, 1.0) * 1e3, 1e18):  # the other operands may be as large
        wide = (noise * min(more, float(torch.finfo(value.dtype).max) / 100)).to(value.dtype)
        yield wide
        yield -wide  # a single number may lie beyond a bound on one side
    if not value.is_complex():
        yield (noise.abs() * scale).to(value.dtype)
        yield (noise.abs() * -scale).to(value.dtype)
    if ABOUT_NAN.search(layer_type):
        for special in (torch.nan, torch.inf, -torch.inf):
            yield torch.where(noise.real > 0 if value.is_complex() else noise > 0, special, value).to(value.dtype)


def _integers(value: Tensor, layer_type: str, generator: torch.Generator) -> Iterator[Tensor]:
    least, most = min(int(value.min()), 0), int(value.max())
    if most > least:
        spread = _uniform(value, generator)
        yield (least + (spread * (most - least + 1)).floor()).clamp(least, most).to(value.dtype)
        yield value.flatten().flip(0).reshape(value.shape)
        yield torch.full_like(value, least)
        yield torch.full_like(value, most)
    if not LOOKS_UP.search(layer_type) and not SIZES_ITS_RESULT.search(layer_type):
        yield value + 1
        yield (_uniform(value, generator) * 100).to(value.dtype)
        yield -value - 1 if value.dtype.is_signed else value + 3


_BLOCK = 65_537
"""So many random numbers are drawn for a large value, and used again; the number is prime, so that no axis fits it."""


def _normal(value: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise, complex for complex values."""
    wide = torch.float64 if value.dtype in (torch.float64, torch.complex128) else torch.float32
    count = value.numel() * (2 if value.is_complex() else 1)
    noise = torch.randn(min(count, _BLOCK), generator=generator, dtype=wide)
    noise = noise.repeat(-(-count // len(noise)))[:count]
    if value.is_complex():
        noise = torch.view_as_complex(noise.reshape(-1, 2))
    return noise.reshape(value.shape).to(value.device)


def _uniform(value: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(value.shape, generator=generator, dtype=torch.float64).to(value.device)
