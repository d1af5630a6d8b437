"""Running a call again, comparing what it returns with what was saved, and random values to put in a parent's place."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from fastrec._torch.trees import leaves
from fastrec.graph.raw import CapturedCall, CapturedOp, Overwritten, Parameter, Ref, Reference, filled, flat
from fastrec.graph.tracking import may_draw, set_generator_states

REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What functions of torch raise for values that don't suit them."""

UNINITIALISED = frozenset("empty emptylike newempty emptystrided emptypermuted".split())
"""Functions whose values are whatever was in memory."""


class CannotReplay(Exception):
    """The reason why a call cannot be run again."""


class Replayed(msgspec.Struct):
    """What a replayed call returned, by path, and its tensor arguments after the call, by operation."""

    values: dict[str, Tensor]
    arguments: dict[int, Tensor]


class Replayer:
    """Runs calls of a capture again, from the saved values of their parents."""

    def __init__(self, ops: Sequence[CapturedOp]) -> None:
        self._ops = ops
        self._written_parameters = set(map(id, _written_parameters(ops)))

    def run(self, call: CapturedCall, instead: Mapping[int, Tensor] | None = None) -> Replayed:
        """Run a call, with other values ``instead`` of those of some operations."""
        if call.func is None or isinstance(call.func, nn.Module):
            raise CannotReplay("nothing was seen of the inside of its module, so there is no function to run again")
        if call.func is torch.autograd.grad:
            raise CannotReplay(
                "a derivative comes from autograd's graph of the pass, which saved values are not part of"
            )
        arguments: dict[int, Tensor] = {}
        other_arguments: dict[int, Tensor] = {}

        def tensor(reference: Reference) -> Tensor:
            if isinstance(reference, Ref | Overwritten):
                op = reference.op
                if op not in arguments:
                    value = (instead or {}).get(op)
                    value = self.value_of(reference) if value is None else value
                    arguments[op] = value.clone() if call.inplace else value
                return arguments[op]
            if not call.inplace:
                return self.value_of(reference)
            if id(reference) not in other_arguments:
                other_arguments[id(reference)] = self.value_of(reference).clone()
            return other_arguments[id(reference)]

        args = tuple([filled(item, tensor) for item in call.args])
        kwargs = {key: filled(item, tensor) for key, item in call.kwargs.items()}
        with circumstances_of(call, kwargs):
            out = call.func(*args, **kwargs)
            if out is None and args:
                out = args[0]
            return Replayed(dict(leaves(out)), arguments)

    def value_of(self, reference: Reference) -> Tensor:
        """The tensor that a call got."""
        if isinstance(reference, Parameter):
            if id(reference.tensor) in self._written_parameters:
                raise CannotReplay(f"the pass writes to the parameter {reference.address!r}, which is not saved")
            return reference.tensor.detach()
        value = self._ops[reference.op].value if isinstance(reference, Ref) else reference.value
        if value is None:
            reason = self._ops[reference.op].unsaved if isinstance(reference, Ref) else ""
            raise CannotReplay(f"the value of an argument was not saved{': ' + reason if reason else ''}")
        return value.detach()


def _written_parameters(ops: Sequence[CapturedOp]) -> Iterator[Tensor]:
    """The parameters that calls of a pass wrote in place."""
    for op in ops:
        if op.call.inplace:
            for target in (*op.call.args[:1], op.call.kwargs.get("out")):
                if isinstance(target, Parameter):
                    yield target.tensor


def parents_in(call: CapturedCall) -> dict[int, Ref | Overwritten]:
    """The operations whose values a call got, in order of the arguments, with how it got them."""
    parents: dict[int, Ref | Overwritten] = {}
    for leaf in flat((call.args, dict(call.kwargs))):
        if isinstance(leaf, Ref | Overwritten):
            parents.setdefault(leaf.op, leaf)
    return parents


@contextmanager
def circumstances_of(call: CapturedCall, kwargs: dict[str, Any]) -> Iterator[None]:
    """The circumstances in which a call was made: random states and autocasting, but without building a graph.

    A generator in ``kwargs`` is replaced by a new one in the same state, so that the user's own is left alone.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for device, dtype in call.autocast:
            stack.enter_context(torch.autocast(device, dtype))
        if call.rng and call.func is not None and may_draw(call.func):
            set_generator_states(call.rng)
            if "generator" in call.rng:
                kwargs["generator"] = torch.Generator(kwargs["generator"].device)
                kwargs["generator"].set_state(call.rng["generator"])
        yield


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
    return not saved.isnan().any() or not torch.allclose(saved, value, rtol=0.0, atol=0.0, equal_nan=True)


# Functions that look something up by index: a random index may be out of range.
_LOOKS_UP = re.compile(
    "embedding|gather|index|scatter|take|getitem|setitem|onehot|bincount|repeatinterleave|pack|ctc|nll|crossentropy"
    "|select|put|slice|narrow|split|roll|tile|repeat|segment|searchsorted"
)

# Functions whose arguments determine the size of the result: a large random number might take all memory.
_SIZES_ITS_RESULT = re.compile("arange|linspace|logspace|^full|^zeros|^ones|^empty|repeat|bincount|onehot|pad|tile")

_ABOUT_NAN = re.compile("nan|isinf|isposinf|isneginf|isfinite")


def replacements(value: Tensor, layer_type: str, generator: torch.Generator) -> Iterator[Tensor]:
    """Random values of the same shape and dtype, less and less like the given one.

    Integers stay between zero and the largest of the given ones if the function may use them as indices.
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
    if _SIZES_ITS_RESULT.search(layer_type):
        return
    for magnitude in (max(scale, 1.0) * 1e3, 1e18):  # the other operands may be as large
        large = (noise * min(magnitude, float(torch.finfo(value.dtype).max) / 100)).to(value.dtype)
        yield large
        yield -large  # a single number may be beyond a bound on one side
    if not value.is_complex():
        yield (noise.abs() * scale).to(value.dtype)
        yield (noise.abs() * -scale).to(value.dtype)
    if _ABOUT_NAN.search(layer_type):
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
    if not _LOOKS_UP.search(layer_type) and not _SIZES_ITS_RESULT.search(layer_type):
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
    return torch.rand(value.shape, generator=generator, dtype=torch.float64).to(value.device)
