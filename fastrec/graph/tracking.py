"""The tensors that a model holds: parameters, buffers, and those in plain attributes."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn, overrides

from fastrec._torch.internals import (
    OpOverload,
    OpOverloadPacket,
    call_impl,
    functorch_unwrapped,
    is_functorch_wrapper,
    wrapped_call_impl,
)
from fastrec.graph.raw import Parameter, Stack
from fastrec.ops.facts import op_facts


class ModelState:
    """Looks tensors of the model up by identity; with ``attributes``, those in plain attributes, too."""

    def __init__(self, roots: Mapping[str, nn.Module], *, attributes: bool) -> None:
        self._parameters: dict[int, Parameter] = {}
        self._buffers: dict[int, tuple[Tensor, str]] = {}
        self._attributes: dict[int, Tensor] | None = {} if attributes else None
        for root, model in roots.items():
            self._take(root, model, set())

    def _take(self, address: str, module: nn.Module, seen: set[int]) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        prefix = f"{address}." if address else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                self._parameters.setdefault(id(parameter), Parameter(prefix + name, parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                self._buffers.setdefault(id(buffer), (buffer, prefix + name))
        if self._attributes is not None:
            self._attributes.update({id(value): value for value in vars(module).values() if isinstance(value, Tensor)})
        for name, child in module._modules.items():
            if child is not None:
                self._take(prefix + name, child, seen)

    def parameter(self, value: Tensor) -> Parameter | None:
        """The parameter that a tensor is."""
        found = self._parameters.get(id(value))
        if found is not None and found.tensor is value:
            return found
        # One that was made during the pass, or that is held by nobody that torch knows of.
        if type(value) is not Tensor and isinstance(value, nn.Parameter):
            return self._parameters.setdefault(id(value), Parameter("", value))
        return None

    def buffer_address(self, value: Tensor) -> str | None:
        """The address of the buffer that a tensor is."""
        found = self._buffers.get(id(value))
        return found[1] if found is not None and found[0] is value else None

    def buffers_among(self, values: Iterable[Any]) -> Iterator[Tensor]:
        """Those of some values that are buffers."""
        return (v for v in values if isinstance(v, Tensor) and self.buffer_address(v) is not None)

    def holds(self, value: Tensor) -> bool:
        """Whether a tensor was an attribute of a module, where attributes were asked for."""
        return self._attributes is not None and self._attributes.get(id(value)) is value

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters, each once."""
        return list(self._parameters.values())

    @property
    def buffers(self) -> dict[str, Tensor]:
        """All buffers by address."""
        return {address: buffer for buffer, address in self._buffers.values()}


class _Write(NamedTuple):
    op: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


class Writes:
    """In-place writes by the memory that they went to."""

    def __init__(self) -> None:
        self.by_storage: dict[int, list[_Write]] = {}

    def note(self, value: Tensor, op: int) -> None:
        """An operation wrote to a tensor."""
        key = storage_of(value)
        if key is not None:
            write = _Write(op, tuple(value.shape), value.stride(), int(value.storage_offset()))
            self.by_storage.setdefault(key, []).append(write)

    def since(self, value: Tensor, op: int) -> tuple[int, ...]:
        """The operations after a given one that wrote to memory of a tensor."""
        key = storage_of(value)
        found = self.by_storage.get(key) if key is not None else None
        # Memory that was freed and taken again is no danger: its new owner came after the writes to the old one.
        if not found or found[-1].op <= op:
            return ()
        shape, strides, offset = tuple(value.shape), value.stride(), int(value.storage_offset())
        return tuple(
            write.op
            for write in found
            if write.op > op and _overlap(shape, strides, offset, write.shape, write.strides, write.offset)
        )


def storage_of(value: Tensor) -> int | None:
    """The identity of a tensor's memory, None where it has none of its own."""
    try:
        return int(value.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a tensor without memory of its own: sparse, fake, wrapped
        return None


def _overlap(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    other_shape: tuple[int, ...],
    other_strides: tuple[int, ...],
    other_offset: int,
) -> bool:
    """Whether two views of one memory share elements; yes where that is not easily told."""
    if 0 in shape or 0 in other_shape:
        return False
    end = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    other_end = other_offset + sum((n - 1) * s for n, s in zip(other_shape, other_strides, strict=True))
    if end < other_offset or other_end < offset:
        return False
    if strides != other_strides:
        return True
    axes = sorted(
        (axis for axis in zip(strides, shape, other_shape, strict=True) if axis[0] > 0), key=lambda axis: -axis[0]
    )
    # Equal strides, so both are boxes in one grid, if each stride is beyond the reach of the smaller ones.
    for place, (stride, _, _) in enumerate(axes):
        if sum((max(n, m) - 1) * s for s, n, m in axes[place + 1 :]) >= stride:
            return True
    return _meet(axes, other_offset - offset)


def _meet(axes: list[tuple[int, int, int]], difference: int) -> bool:
    """Whether two boxes in a grid share an element, from how far apart they begin."""
    if not axes:
        return difference == 0
    stride, size, other_size = axes[0]
    steps = difference // stride
    return any(-other_size < n < size and _meet(axes[1:], difference - n * stride) for n in (steps, steps + 1))


class Transforms:
    """Follows values into transforms and out of them, by what the wrappers hold."""

    def __init__(self) -> None:
        self.inside: dict[int, int] = {}  # the operation that each memory comes from

    def note(self, value: Tensor, op: int) -> None:
        """An operation returned a value inside of a transform."""
        key = storage_of(_unwrapped(value))
        if key is not None:
            self.inside[key] = op

    def producer(self, value: Tensor, known: Callable[[Tensor], int | None]) -> int | None:
        """The operation that a value comes from which went through a wrapper; None for one that did not."""
        inner = _unwrapped(value)
        found = known(inner) if inner is not value else None
        if found is None and self.inside:
            key = storage_of(inner)
            found = None if key is None else self.inside.get(key)
        return found


def _unwrapped(value: Tensor) -> Tensor:
    while is_functorch_wrapper(value):
        value = functorch_unwrapped(value)
    return value


# Functions of torch that may draw, by parts of their names. Anything that is not torch's own may draw too.
_DRAWS = re.compile(
    "rand|dropout|bernoulli|normal(?!ize)|uniform|exponential|geometric|cauchy|multinomial|poisson|binomial|gamma"
    "|dirichlet|rrelu|gumbel|fractional|scaleddotproduct|lstm|gru|rnn|lowrank|dropconnect|attention|philox|init"
)


@lru_cache(maxsize=4096)
def may_draw(func: Callable[..., Any]) -> bool:
    """Whether a call of a function may draw random numbers."""
    module = getattr(func, "__module__", None) or ""
    if isinstance(func, OpOverload | OpOverloadPacket) or not _is_torchs(func, module):
        return True
    facts = op_facts(func)
    return facts is None or _DRAWS.search(facts.layer_type) is not None


def _is_torchs(func: Callable[..., Any], module: str) -> bool:
    owner: Any = getattr(func, "__objclass__", None) or getattr(func, "__self__", None)
    if owner is not None and not module:
        module = getattr(owner, "__module__", None) or type(owner).__module__ or ""
    return module.split(".")[0] in ("torch", "_operator", "")


class GeneratorStates:
    """The states before each call; calls between two draws share one copy."""

    def __init__(self) -> None:
        self._shared: Mapping[str, Tensor] | None = None

    def before(self, func: Callable[..., Any], kwargs: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The states before a call."""
        if may_draw(func):
            self._shared = None
            states = current_states()
            own = kwargs.get("generator")
            if own is not None:
                states["generator"] = own.get_state()
            return states
        if self._shared is None:
            self._shared = current_states()
        return self._shared


def current_states() -> dict[str, Tensor]:
    """The states of the default generators now, by device."""
    states = {"cpu": torch.default_generator.get_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for index in range(torch.cuda.device_count()):
            states[f"cuda:{index}"] = torch.cuda.get_rng_state(index)
    return states


def set_states(states: Mapping[str, Tensor]) -> None:
    """Put the default generators into earlier states."""
    for device, state in states.items():
        if device == "cpu":
            torch.default_generator.set_state(state)
        elif device.startswith("cuda"):
            torch.cuda.set_rng_state(state, device)


_HERE = str(Path(__file__).parent.parent)

_HANDLE = overrides.handle_torch_function.__code__

_MACHINERY = {call_impl.__code__, wrapped_call_impl.__code__}


class StackReader:
    """Reads the frames of calls; those outside of the innermost module are read once per module call."""

    def __init__(self) -> None:
        self._shown: dict[CodeType, bool] = {}

    def read(self, frame: FrameType | None, stop: FrameType | None, outside: Stack | None) -> Stack | None:
        """The frames from one up to another, in front of those outside of that one."""
        shown = self._shown
        found = []
        while frame is not None and frame is not stop:
            code = frame.f_code
            show = shown.get(code)
            if show is None:
                show = shown[code] = code not in _MACHINERY and not code.co_filename.startswith(_HERE)
            if code is _HANDLE and frame.f_back is not None:
                frame = frame.f_back.f_back  # a function of torch that hands itself to a mode
                continue
            if show:
                found.append((code, frame.f_lasti))
            frame = frame.f_back
        for code, instruction in reversed(found):
            outside = (outside, code, instruction)
        return outside


def frames_of(stack: Stack | None) -> list[tuple[CodeType, int]]:
    """Code and instruction of each frame, outermost first."""
    found = []
    while stack is not None:
        stack, code, instruction = stack
        found.append((code, instruction))
    return found[::-1]


def line_of(code: CodeType, instruction: int) -> int:
    """The line of an instruction."""
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


class FuncCallLocation(msgspec.Struct, frozen=True):
    """A line of source that was running when an operation was computed.

    >>> from fastrec.graph import FuncCallLocation
    >>> FuncCallLocation(file="model.py", line=3, function="forward").code
    'source not available'
    """

    file: str
    line: int
    function: str

    @property
    def code(self) -> str:
        """The line with two lines before and after it, marked by an arrow."""
        lines = linecache.getlines(self.file)
        if not 0 < self.line <= len(lines):
            return "source not available"
        around = range(max(1, self.line - 2), min(len(lines), self.line + 2) + 1)
        texts = {number: lines[number - 1].rstrip() for number in around}
        margin = min((len(t) - len(t.lstrip()) for t in texts.values() if t), default=0)
        return "\n".join(f"{'--->' if n == self.line else '    '}  {t[margin:]}".rstrip() for n, t in texts.items())

    def __str__(self) -> str:
        code = "\n".join(f"    {line}" for line in self.code.splitlines())
        return (
            f"FuncCallLocation:\n  file: {self.file}\n  line: {self.line}\n  function: {self.function}\n  code:\n{code}"
        )

    __repr__ = __str__


def locations(stack: Stack | None) -> list[FuncCallLocation]:
    """The frames of a call, outermost first."""
    return [location(code, instruction) for code, instruction in frames_of(stack)]


def location(code: CodeType, instruction: int) -> FuncCallLocation:
    """One frame, as people read it."""
    return FuncCallLocation(code.co_filename, line_of(code, instruction), code.co_name)
