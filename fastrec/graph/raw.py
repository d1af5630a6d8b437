"""What the capture of a forward pass leaves behind: calls, the values that they returned, and module calls.

Everything else that a history tells is worked out from this, when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any, Literal, Optional, Protocol

import msgspec
import torch
from torch import Tensor

OpKind = Literal["op", "input", "buffer", "output"]

Stack = tuple[Optional["Stack"], CodeType, int]
"""A chain of frames, innermost first: the frames outside, the code, and the instruction in it."""

_NOTHING: Mapping[str, Any] = {}


class Ref(msgspec.Struct, frozen=True, gc=False):
    """In the arguments of a call: the value of an operation, by the operation's index."""

    op: int


class Overwritten(msgspec.Struct, frozen=True):
    """In the arguments of a call: an operation's value that was written through another view of its memory.

    ``value`` is what it was when the call read it, None where no values are kept; ``written_by`` are the writers.
    """

    op: int
    written_by: tuple[int, ...]
    value: Tensor | None


class Parameter(msgspec.Struct, frozen=True, eq=False):
    """In the arguments of a call: a parameter of the model; the tensor is the model's own."""

    address: str
    tensor: Tensor


class ConstantTensor(msgspec.Struct, frozen=True, eq=False):
    """In the arguments of a call: a tensor that came neither from an operation nor from the model's state.

    ``value`` is a copy, None where no values are kept.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    value: Tensor | None


class Readable(Protocol):
    """A tensor that lies elsewhere."""

    @property
    def nbytes(self) -> int:
        """Its size."""

    def read(self) -> Tensor:
        """It."""


class ModuleCall:
    """One call of a module: which pass of it, inside of which other call, and what went in and out.

    ``entered_at`` and ``exited_at`` hold the operation of each leaf of the arguments and of the value. ``stack`` is
    where it was called from; seconds include the calls inside of it.
    """

    __slots__ = ("address", "entered_at", "exited_at", "kind", "number", "ops", "parent", "seconds", "stack", "started")

    def __init__(self, address: str, kind: str, number: int, parent: ModuleCall | None, stack: Stack | None) -> None:
        self.address = address
        self.kind = kind
        self.number = number
        self.parent = parent
        self.stack = stack
        self.entered_at: Mapping[str, int] = _NOTHING
        self.exited_at: Mapping[str, int] = _NOTHING
        self.ops = 0  # how many operations ran in it, those inside of its submodules included
        self.started = 0.0
        self.seconds = 0.0

    @property
    def label(self) -> str:
        """The address with the number of the pass, as in ``features.3:1``."""
        return f"{self.address}:{self.number}"

    @property
    def entered(self) -> tuple[int, ...]:
        """The operations whose values went in."""
        return tuple(dict.fromkeys(self.entered_at.values()))

    @property
    def exited(self) -> tuple[int, ...]:
        """The operations whose values came out."""
        return tuple(dict.fromkeys(self.exited_at.values()))


class CapturedCall(msgspec.Struct, gc=False, eq=False):
    """One call of a function: what ran, on what, and in which state of the world.

    ``args`` and ``kwargs`` hold Ref, Stale, Parameter and Constant in place of tensors. ``label`` and ``site`` are
    those of the fast path. ``rng`` are the states of the random generators before it, by device.
    """

    func: Callable[..., Any] | None
    func_name: str
    layer_type: str
    label: str
    site: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = _NOTHING
    parameters: tuple[Parameter, ...] = ()
    rng: Mapping[str, Tensor] = _NOTHING
    seconds: float = 0.0
    stack: Stack | None = None
    inplace: bool = False
    autocast: tuple[tuple[str, torch.dtype], ...] = ()


class CapturedOp(msgspec.Struct, gc=False, eq=False):
    """One value of the pass: an operation's output, an input, a buffer that was read, or an output of the model.

    ``parents`` are indices of operations. ``path`` and ``output_index`` tell which value of its call it is.
    ``value`` and ``transformed`` are what was saved of it, ``unsaved`` why nothing could be; ``held`` and
    ``held_transformed`` are where: a tensor, or one in a file, which is read whenever it is asked for.
    """

    index: int
    kind: OpKind
    call: CapturedCall
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    nbytes: int
    requires_grad: bool
    grad_fn: str | None
    module: ModuleCall | None = None
    path: str = ""
    output_index: int | None = None
    address: str = ""
    held: Tensor | Readable | None = None
    held_transformed: Tensor | Readable | None = None
    unsaved: str = ""

    @classmethod
    def of(cls, index: int, kind: OpKind, call: CapturedCall, parents: tuple[int, ...], value: Tensor) -> CapturedOp:
        """What is known of a value, but for where it was computed."""
        # A nested tensor has no shape of its own.
        shape = () if value.is_nested else tuple(value.shape)
        nbytes = 0 if value.is_nested else value.numel() * value.element_size()
        gradient = value.grad_fn
        name = None if gradient is None else type(gradient).__name__
        return cls(index, kind, call, parents, shape, value.dtype, value.device, nbytes, value.requires_grad, name)

    @property
    def value(self) -> Tensor | None:
        """What was saved of it."""
        held = self.held
        return held if held is None or isinstance(held, Tensor) else held.read()

    @value.setter
    def value(self, value: Tensor | None) -> None:
        self.held = value

    @property
    def transformed(self) -> Tensor | None:
        """What a function of the user made of it."""
        held = self.held_transformed
        return held if held is None or isinstance(held, Tensor) else held.read()

    @transformed.setter
    def transformed(self, value: Tensor | None) -> None:
        self.held_transformed = value

    @property
    def is_saved(self) -> bool:
        """Whether anything was saved of it."""
        return self.held is not None or self.held_transformed is not None

    @property
    def saved_bytes(self) -> int:
        """The size of what was saved of it."""
        return sum(held.nbytes for held in (self.held, self.held_transformed) if held is not None)


class ValueRead(msgspec.Struct, frozen=True):
    """Python looked at a tensor's value: ``bool(x)``, ``x.item()`` and the like.

    ``at`` is how many operations had run by then.
    """

    op: int
    how: str
    value: Any
    stack: Stack | None
    at: int


class Capture:
    """A forward pass as it was seen."""

    def __init__(self) -> None:
        self.ops: list[CapturedOp] = []
        self.module_calls: list[ModuleCall] = []  # in the order in which they began
        self.returns: list[ModuleCall] = []  # in the order in which they ended
        self.truths: list[ValueRead] = []
        self.gradients: dict[int, Tensor] = {}
        # The operation that each leaf of a composite's value came from, by label, site and path.
        self.composites: dict[tuple[str, str, str], int] = {}
        self.buffer_writes: list[tuple[str, int]] = []
        self.seed = 0
        self.started = 0.0
        self.ended = 0.0
        self.seconds = 0.0  # from the call to the history


Replace = Callable[[Any], Any]

REFERENCES = (Ref, Overwritten, Parameter, ConstantTensor)


def referenced(value: Any, reference: Callable[[Tensor], Any]) -> Any:
    """A nested argument with each tensor replaced by what a function makes of it; containers are new ones."""
    return mapped(value, lambda leaf: reference(leaf) if isinstance(leaf, Tensor) else leaf)


def filled(template: Any, tensor: Callable[[Any], Any]) -> Any:
    """Nested arguments with each reference replaced by what a function makes of it."""
    return mapped(template, lambda leaf: tensor(leaf) if isinstance(leaf, REFERENCES) else leaf)


def mapped(value: Any, replace: Replace) -> Any:
    """A nested value of tuples, lists, dicts and slices with each leaf replaced."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([mapped(item, replace) for item in value])
    if kind is dict:
        return {key: mapped(item, replace) for key, item in value.items()}
    if kind is slice:
        return slice(mapped(value.start, replace), mapped(value.stop, replace), mapped(value.step, replace))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*[mapped(item, replace) for item in value])
    return replace(value)


def flat(value: Any) -> Iterator[Any]:
    """The leaves of nested arguments."""
    kind = type(value)
    if kind is tuple or kind is list:
        for item in value:
            yield from flat(item)
    elif kind is dict:
        for item in value.values():
            yield from flat(item)
    elif kind is slice:
        yield from (value.start, value.stop, value.step)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for item in value:
            yield from flat(item)
    else:
        yield value


def without_tensors(template: Any) -> Any:
    """Nested arguments less their references, as far as anything is left; None where nothing is."""
    if isinstance(template, REFERENCES):
        return None
    kind = type(template)
    if kind is tuple or kind is list:
        kept = [item for item in template if not isinstance(item, REFERENCES)]
        if len(kept) < len(template) and not kept:
            return None
        return kind([without_tensors(item) for item in kept])
    if kind is dict:
        return {k: without_tensors(v) for k, v in template.items() if not isinstance(v, REFERENCES)}
    return template
