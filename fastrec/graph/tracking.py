"""What a tracer has to know besides the values that pass by: whose a tensor is, who wrote to it, and random states.

    state = ModelState(roots, attributes=False)   # is this tensor a parameter or a buffer, and at which address?
    writes = Writes()                             # which operations have written to this tensor's memory since?
    transforms = Transforms()                     # which operation does this wrapper of vmap come from?
    generators = GeneratorStates()                # in which state were the random generators before this call?

Tensors are looked up by ``id``, because ``==`` compares their elements. When a tensor is freed, its id may be given to
another one. So each table keeps the tensor as well, or a weak reference to it, and checks that it is the same object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastrec._torch.internals import OpOverload, OpOverloadPacket, functorch_unwrapped, is_functorch_wrapper
from fastrec.graph.raw import Parameter
from fastrec.ops.facts import op_facts


class ModelState:
    """The tensors of a model: parameters, buffers, and with ``attributes`` those in plain attributes of modules."""

    def __init__(self, roots: Mapping[str, nn.Module], *, attributes: bool) -> None:
        self._parameters: dict[int, Parameter] = {}
        self._buffers: dict[int, tuple[Tensor, str]] = {}
        self._attributes: dict[int, Tensor] | None = {} if attributes else None
        for root, model in roots.items():
            self._add(root, model, set())

    def _add(self, address: str, module: nn.Module, seen: set[int]) -> None:
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
                self._add(prefix + name, child, seen)

    def parameter(self, value: Tensor) -> Parameter | None:
        """The parameter that a tensor is."""
        parameter = self._parameters.get(id(value))
        if parameter is not None and parameter.tensor is value:
            return parameter
        # One that was made during the pass, or that belongs to no module.
        if type(value) is not Tensor and isinstance(value, nn.Parameter):
            return self._parameters.setdefault(id(value), Parameter("", value))
        return None

    def buffer_address(self, value: Tensor) -> str | None:
        """The address of the buffer that a tensor is."""
        buffer, address = self._buffers.get(id(value), (None, None))
        return address if buffer is value else None

    def buffers_among(self, values: Iterable[Any]) -> Iterator[Tensor]:
        """Those of some values that are buffers."""
        return (v for v in values if isinstance(v, Tensor) and self.buffer_address(v) is not None)

    def has_attribute(self, value: Tensor) -> bool:
        """Whether a tensor is a plain attribute of a module; False unless attributes were asked for."""
        return self._attributes is not None and self._attributes.get(id(value)) is value


class _Write(NamedTuple):
    """The memory that an operation wrote: a box in a storage."""

    op: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


class Writes:
    """In-place writes, by the memory they went to.

    After ``first = y[0]; first.mul_(2)`` the tensor ``y`` has other values, although no operation has returned it
    again. An operation that reads ``y`` from then on depends on ``mul_`` too.
    """

    def __init__(self) -> None:
        self.by_storage: dict[int, list[_Write]] = {}

    def note(self, value: Tensor, op: int) -> None:
        """An operation wrote to a tensor."""
        storage = _storage_of(value)
        if storage is not None:
            write = _Write(op, tuple(value.shape), value.stride(), int(value.storage_offset()))
            self.by_storage.setdefault(storage, []).append(write)

    def since(self, value: Tensor, op: int) -> tuple[int, ...]:
        """The operations after a given one that wrote to a tensor's memory."""
        storage = _storage_of(value)
        writes = self.by_storage.get(storage) if storage is not None else None
        # Memory that was freed and reused does no harm: its new owner was computed after the writes to the old one.
        if not writes or writes[-1].op <= op:
            return ()
        shape, strides, offset = tuple(value.shape), value.stride(), int(value.storage_offset())
        return tuple(
            write.op
            for write in writes
            if write.op > op and _overlap(shape, strides, offset, write.shape, write.strides, write.offset)
        )


def _storage_of(value: Tensor) -> int | None:
    """The identity of a tensor's storage, None if it has none of its own: sparse, fake, wrapped."""
    try:
        return int(value.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def _overlap(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    other_shape: tuple[int, ...],
    other_strides: tuple[int, ...],
    other_offset: int,
) -> bool:
    """Whether two views of one storage share elements; True where that is hard to decide.

    A wrong answer adds an edge to the graph: if two rows of a matrix counted as the same memory, whatever reads one row
    would depend on writes to the other. Views with equal strides, as slices of one tensor have, are compared exactly:
    they are boxes in one grid.
    """
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
    # They are boxes only if each stride is larger than the reach of all smaller strides together.
    for number, (stride, _, _) in enumerate(axes):
        if sum((max(n, m) - 1) * s for s, n, m in axes[number + 1 :]) >= stride:
            return True
    return _boxes_meet(axes, other_offset - offset)


def _boxes_meet(axes: list[tuple[int, int, int]], difference: int) -> bool:
    """Whether two boxes in a grid share an element, from how far apart they begin.

    Along the largest stride, the second box begins ``difference // stride`` steps after the first, or one step more
    with a negative remainder; the smaller strides have to make up for the rest.
    """
    if not axes:
        return difference == 0
    stride, size, other_size = axes[0]
    steps = difference // stride
    return any(-other_size < n < size and _boxes_meet(axes[1:], difference - n * stride) for n in (steps, steps + 1))


class Transforms:
    """Follows values into ``vmap``, ``grad`` and ``jvp`` and out of them again.

    A transform wraps values on the way in and unwraps them on the way out, without a call that a mode could see. What
    stays the same is the tensor inside the wrapper, or at least its storage.
    """

    def __init__(self) -> None:
        self.by_storage: dict[int, int] = {}  # the operation that the memory inside each wrapper comes from

    def note(self, value: Tensor, op: int) -> None:
        """An operation returned a value inside a transform."""
        storage = _storage_of(_unwrapped(value))
        if storage is not None:
            self.by_storage[storage] = op

    def producer(self, value: Tensor, producer_of: Callable[[Tensor], int | None]) -> int | None:
        """The operation that a value comes from if it went through a wrapper; ``producer_of`` knows plain values."""
        inner = _unwrapped(value)
        op = producer_of(inner) if inner is not value else None
        if op is None and self.by_storage:
            storage = _storage_of(inner)
            op = None if storage is None else self.by_storage.get(storage)
        return op


def _unwrapped(value: Tensor) -> Tensor:
    while is_functorch_wrapper(value):
        value = functorch_unwrapped(value)
    return value


class GeneratorStates:
    """The states of the random generators before each call.

    To copy a state takes longer than a small operation. Calls that can't draw random numbers leave the state alone, so
    all calls between two draws share one copy.
    """

    def __init__(self) -> None:
        self._shared: Mapping[str, Tensor] | None = None

    def before(self, func: Callable[..., Any], kwargs: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The states before a call, by device, and that of a generator among its arguments."""
        if may_draw(func):
            self._shared = None
            states = _generator_states()
            generator = kwargs.get("generator")
            if generator is not None:
                states["generator"] = generator.get_state()
            return states
        if self._shared is None:
            self._shared = _generator_states()
        return self._shared


# Functions of torch that may draw random numbers, by parts of their names. A name too many costs a copy of the state; a
# missing one would make a replayed call draw other numbers.
_DRAWS = re.compile(
    "rand|dropout|bernoulli|normal(?!ize)|uniform|exponential|geometric|cauchy|multinomial|poisson|binomial|gamma"
    "|dirichlet|rrelu|gumbel|fractional|scaleddotproduct|lstm|gru|rnn|lowrank|dropconnect|attention|philox|init"
)


@lru_cache(maxsize=4096)
def may_draw(func: Callable[..., Any]) -> bool:
    """Whether a call of a function may draw random numbers; a function that is not torch's own may."""
    module = getattr(func, "__module__", None) or ""
    if isinstance(func, OpOverload | OpOverloadPacket) or not _belongs_to_torch(func, module):
        return True
    facts = op_facts(func)
    return facts is None or _DRAWS.search(facts.layer_type) is not None


def _belongs_to_torch(func: Callable[..., Any], module: str) -> bool:
    owner: Any = getattr(func, "__objclass__", None) or getattr(func, "__self__", None)
    if owner is not None and not module:
        module = getattr(owner, "__module__", None) or type(owner).__module__ or ""
    return module.split(".")[0] in ("torch", "_operator", "")


def _generator_states() -> dict[str, Tensor]:
    states = {"cpu": torch.default_generator.get_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for index in range(torch.cuda.device_count()):
            states[f"cuda:{index}"] = torch.cuda.get_rng_state(index)
    return states


def set_generator_states(states: Mapping[str, Tensor]) -> None:
    """Restore states of the default generators."""
    for device, state in states.items():
        if device == "cpu":
            torch.default_generator.set_state(state)
        elif device.startswith("cuda"):
            torch.cuda.set_rng_state(state, device)
