"""Other values for an argument of a call: as different as the function's contract allows, and no more.

    allowed = allowed_values(call, place)      # NONE, IN_RANGE or ANY
    for other in replacements(value, allowed, generator):
        replayer.run(call, {source: other})

Not every kernel checks its arguments. Lengths of packed sequences that contradict each other make torch write outside
of its memory, and the process dies later, somewhere else. So what may be put in an argument's place is decided by what
is known of the function, and where nothing is known, nothing is put there:

- pointwise functions, as torch itself tags them, take any number;
- functions of torch take other floats of the range that they got (weights, probabilities, samples in [0, 1)); beyond
  that range only where torch has a derivative for the argument, because then it is a number and not a position;
- integers may be indices, lengths or sizes. Other indices of the same range do no harm where torch checks indices;
- any number does no harm where a function only moves or adds up what it got;
- functions that are not torch's own are only given other floats, where there is a derivative.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastrec.graph.raw import CapturedCall
from fastrec.graph.tracking import is_of_torch


class Allowed(Enum):
    """Which values a function may get in place of an argument."""

    NONE = "none"
    IN_RANGE = "in range"
    ANY = "any"


# By canonical name. Functions that look up by index, or that make as much as they are told to: torch checks the
# indices, and smaller sizes than the one that was given do no harm.
_LOOK_UP = frozenset(
    "getitem setitem gather indexselect select index indexput indexadd indexcopy indexfill indexreduce take "
    "takealongdim put scatter scatteradd scatterreduce embedding nllloss crossentropy onehot bincount repeatinterleave "
    "narrow arange zeros ones full empty linspace searchsorted bucketize".split()
)

_INDEX = _LOOK_UP - frozenset(
    "bincount onehot repeatinterleave narrow arange zeros ones full empty linspace searchsorted bucketize".split()
)

# Functions that move, copy, convert, compare or add up their first argument, whatever numbers it holds.
_MOVE = frozenset(
    "view reshape flatten unflatten squeeze unsqueeze transpose permute t mt h mh movedim moveaxis swapaxes swapdims "
    "expand expandas viewas reshapeas broadcastto contiguous clone detach alias copy to type typeas float double half "
    "bfloat16 int long bool short char byte cpu cuda cat concat concatenate stack hstack vstack dstack columnstack "
    "rowstack split chunk unbind narrow select getitem gather take indexselect flip fliplr flipud roll "
    "rot90 diag diagonal diagembed tril triu "
    "sum mean prod cumsum cumprod cummax cummin amax amin max min argmax argmin aminmax sort argsort topk any all "
    "unique uniqueconsecutive nonzero countnonzero equal isin maskedselect unfold pad broadcasttensors meshgrid "
    "atleast1d atleast2d atleast3d tensor astensor diff trace median mode kthvalue".split()
)

# Functions without a derivative, and without torch's tag, that take any number in any place.
_TAKE_ANY = frozenset("floordivide isclose allclose isin bucketize searchsorted heaviside logicalnot meshgrid".split())


@lru_cache(maxsize=4096)
def is_pointwise(func: Any) -> bool:
    """Whether a function of torch takes each number by itself, after torch's own tags."""
    name = getattr(func, "__name__", "").strip("_")
    packet = getattr(torch.ops.aten, name, None) or getattr(torch.ops.aten, _OPERATORS.get(name, name), None)
    if packet is None or not is_of_torch(func):
        return False
    return any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())


# Operators of Python whose names differ from those of the ops behind them.
_OPERATORS = {
    **{"truediv": "div", "rtruediv": "div", "itruediv": "div", "floordiv": "floor_divide", "mod": "remainder"},
    **{"radd": "add", "iadd": "add", "rsub": "sub", "isub": "sub", "rmul": "mul", "imul": "mul", "rpow": "pow"},
    **{"ipow": "pow", "idiv": "div", "rdiv": "div", "invert": "bitwise_not", "and": "bitwise_and"},
    **{"or": "bitwise_or", "xor": "bitwise_xor", "iand": "bitwise_and", "ior": "bitwise_or", "ixor": "bitwise_xor"},
    **{"lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift", "rfloordiv": "floor_divide"},
}


def allowed_values(call: CapturedCall, value: Tensor, *, is_first: bool, has_derivative: bool = False) -> Allowed:
    """What may be put in the place of ``value``; ``is_first`` is whether that is the first argument."""
    func = call.func
    if is_pointwise(func) or has_derivative:
        return Allowed.ANY
    if not is_of_torch(func):
        return Allowed.NONE
    if value.dtype == torch.bool or call.layer_type in _TAKE_ANY or (call.layer_type in _MOVE and is_first):
        return Allowed.ANY
    if value.is_floating_point() or value.is_complex():
        return Allowed.IN_RANGE
    if call.layer_type in ("getitem", "setitem") and value.dim() == 0:  # a number, which Python checks
        return Allowed.ANY
    return Allowed.IN_RANGE if call.layer_type in _LOOK_UP else Allowed.NONE


def index_limit(call: CapturedCall, first: Tensor | None) -> int:
    """What every index that a call looks up by may be below, whatever the axis; 0 if nothing is known.

    ``first`` is the first tensor argument, or the table of an embedding.
    """
    return min(first.shape, default=0) if first is not None and call.layer_type in _INDEX else 0


def replacements(value: Tensor, allowed: Allowed, generator: torch.Generator, limit: int = 0) -> Iterator[Tensor]:
    """Other values of the same shape and dtype, the ones that are most like the given ones first.

    Non-negative integers below ``limit`` are known to be in range.
    """
    if value.numel() == 0 or allowed is Allowed.NONE:
        return
    if value.dtype == torch.bool:
        yield from _booleans(value, generator)
    elif value.is_floating_point() or value.is_complex():
        yield from _floats_in_range(value, generator)
        if allowed is Allowed.ANY:
            yield from _floats(value, generator)
    else:
        yield from _integers_in_range(value, generator, limit)
        if allowed is Allowed.ANY:
            yield from _integers(value, generator)


def generic_value(value: Tensor, allowed: Allowed, generator: torch.Generator, limit: int = 0) -> Tensor:
    """A value of the usual kind: no infinities, not all zeros, not all alike; the given one if none is allowed."""
    if value.numel() == 0 or allowed is Allowed.NONE:
        return value
    if value.dtype == torch.bool:
        return _uniform(value, generator) < 0.5
    if value.is_floating_point() or value.is_complex():
        if allowed is Allowed.ANY:
            noise = _normal(value, generator)
            # Whole numbers are often equal, and often zero, which is all that some functions ask for.
            is_whole = not value.is_complex() and float(torch.rand((), generator=generator)) < 0.5
            return (noise.round() if is_whole else noise).to(value.dtype)
        return next(iter(_floats_in_range(value, generator)))
    if allowed is Allowed.ANY:
        return (_uniform(value, generator) * 10).floor().to(value.dtype)
    return next(iter(_integers_in_range(value, generator, limit)), value)


def _booleans(value: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    yield ~value
    yield _uniform(value, generator) < 0.5
    yield torch.ones_like(value)
    yield torch.zeros_like(value)


def _floats_in_range(value: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Floats between the smallest and the largest given one, or nearer to zero if these are equal."""
    spread = _uniform(value, generator)
    if value.is_complex():
        yield (value.nan_to_num() * spread).to(value.dtype)
        return
    finite = value[value.isfinite()].double()
    least, most = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.5)
    if least == most:
        least, most = (most * 0.1, most) if most else (0.0, 0.5)
    yield (least + spread * (most - least)).clamp(least, most).to(value.dtype)
    yield value.flatten().flip(0).reshape(value.shape)
    for is_least in (spread < 0.5, spread >= 0.5):
        yield torch.where(is_least, least, most).to(value.dtype)


def _floats(value: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    scale = float(value.abs().nan_to_num(0.0, 0.0, 0.0).max())
    scale = min(scale or 1.0, 1e4)
    noise = _normal(value, generator)
    yield (noise * scale).to(value.dtype)
    yield noise.to(value.dtype)
    if not value.is_complex():
        yield noise.round().to(value.dtype)
    for magnitude in (max(scale, 1.0) * 1e3, 1e18):  # the other operands may be as large
        large = (noise * min(magnitude, float(torch.finfo(value.dtype).max) / 100)).to(value.dtype)
        yield large
        yield -large  # a single number may be beyond a bound on one side
    if not value.is_complex():
        yield (noise.abs() * scale).to(value.dtype)
        yield (noise.abs() * -scale).to(value.dtype)
    for special in (math.nan, math.inf, -math.inf):
        yield torch.where(_uniform(value, generator) < 0.5, special, value).to(value.dtype)
        yield torch.full_like(value, special)


def _integers_in_range(value: Tensor, generator: torch.Generator, limit: int) -> Iterator[Tensor]:
    """Integers between zero, or the smallest given one, and the largest one that is known to be in range."""
    least, most = min(int(value.min()), 0), max(int(value.max()), limit - 1)
    if most > least:
        spread = _uniform(value, generator)
        yield (least + (spread * (most - least + 1)).floor()).clamp(least, most).to(value.dtype)
        yield value.flatten().flip(0).reshape(value.shape)
        yield torch.full_like(value, least)
        yield torch.full_like(value, most)


def _integers(value: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    yield value + 1
    yield (_uniform(value, generator) * 100).to(value.dtype)
    yield -value - 1 if value.dtype.is_signed else value + 3


_NOISE_PERIOD = 65_537
"""How many random numbers are drawn for a large value, and then repeated; a prime number, which no axis divides."""


def _normal(value: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise, complex for complex values."""
    wide = torch.float64 if value.dtype in (torch.float64, torch.complex128) else torch.float32
    count = value.numel() * (2 if value.is_complex() else 1)
    noise = torch.randn(min(count, _NOISE_PERIOD), generator=generator, dtype=wide)
    noise = noise.repeat(-(-count // len(noise)))[:count]
    if value.is_complex():
        noise = torch.view_as_complex(noise.reshape(-1, 2))
    return noise.reshape(value.shape).to(value.device)


def _uniform(value: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers between 0 and 1."""
    count = value.numel()
    numbers = torch.rand(min(count, _NOISE_PERIOD), generator=generator, dtype=torch.float64)
    return numbers.repeat(-(-count // max(len(numbers), 1)))[:count].reshape(value.shape).to(value.device)
