"""What the capture of a forward pass writes down: calls of functions, the values that they returned, calls of modules.

    op = log_forward_pass(model, x)["relu_1"].raw    # a CapturedOp
    op.parents                                       # (1,): the operation with index 1
    op.call.func, op.call.args                       # relu, (Ref(op=1),)

Nothing else is written down while a pass runs. Labels, layers, distances, conditions and all other attributes of a
history are worked out from it on demand, so that logging costs as little as possible.

A call keeps its arguments as a *template*: the nested tuples, lists, dicts and slices that the function got, with a
reference in place of each tensor. The tensors themselves would be wrong by the time the arguments are read, because
later operations may write to them in place; and each value is already saved once, by the operation that computed it.
There are four kinds of reference: Ref (the value of an operation), Overwritten (such a value after a write through
another view of its memory), Parameter and ConstantTensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any, Literal, Optional

import msgspec
import torch
from torch import Tensor

from fastrec.graph.tensor_file import LazyTensor

# The structs of which there are one or more per operation are out of the garbage collector's sight (gc=False): walking
# them again and again would take longer than the pass, and none of them is part of a cycle.

OpKind = Literal["op", "input", "buffer", "output"]

Stack = tuple[Optional["Stack"], CodeType, int]
"""A chain of frames, innermost first: the frames around it, the code, and the instruction in that code.

Frames themselves would keep all local variables of the model alive. Calls in one function share the chain around it.
"""

_EMPTY: Mapping[str, Any] = {}


class Ref(msgspec.Struct, frozen=True, gc=False):
    """In a template: the value of an operation, by the operation's index."""

    op: int


class Overwritten(msgspec.Struct, frozen=True):
    """In a template: an operation's value after a write through another view of its memory.

    ``value`` is what it was when the call read it, None where no values are saved; ``written_by`` are the writers.
    """

    op: int
    written_by: tuple[int, ...]
    value: Tensor | None


class Parameter(msgspec.Struct, frozen=True, eq=False):
    """In a template: a parameter of the model; the tensor is the model's own."""

    address: str
    tensor: Tensor

    @property
    def nbytes(self) -> int:
        """The size of the parameter in bytes."""
        return self.tensor.numel() * self.tensor.element_size()


class ConstantTensor(msgspec.Struct, frozen=True, eq=False):
    """In a template: a tensor that neither an operation computed nor the model holds as a parameter or buffer.

    ``value`` is a copy, None where no values are saved.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    value: Tensor | None


Reference = Ref | Overwritten | Parameter | ConstantTensor

REFERENCES = (Ref, Overwritten, Parameter, ConstantTensor)


class ModuleCall(msgspec.Struct, eq=False):
    """One call of a module: which pass of it this is, which call it ran in, and what went in and out.

    ``kind`` is the module's class. ``entered_at`` and ``exited_at`` hold the operation of each leaf of the arguments
    and of the value. ``stack`` is where the module was called. ``ops`` counts the operations that ran in the call, and
    ``seconds`` is its duration; both include the submodules. ``aliases`` are further addresses of the same module.
    """

    address: str
    kind: str
    number: int
    parent: ModuleCall | None
    stack: Stack | None
    entered_at: Mapping[str, int] = _EMPTY
    exited_at: Mapping[str, int] = _EMPTY
    ops: int = 0
    started: float = 0.0
    seconds: float = 0.0
    aliases: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses of the module, the one that is used first."""
        return (self.address, *self.aliases)

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
    """One call of a function: what ran, on which arguments, and under which circumstances.

    ``args`` and ``kwargs`` are templates. ``label`` and ``site`` are those of the fast path. ``rng`` holds the states
    of the random generators before the call, by device; ``autocast`` the dtype of each device that was autocasting.
    """

    func: Callable[..., Any] | None
    func_name: str
    layer_type: str
    label: str
    site: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = _EMPTY
    parameters: tuple[Parameter, ...] = ()
    rng: Mapping[str, Tensor] = _EMPTY
    seconds: float = 0.0
    stack: Stack | None = None
    inplace: bool = False
    autocast: tuple[tuple[str, torch.dtype], ...] = ()


class CapturedOp(msgspec.Struct, gc=False, eq=False):
    """One value of the pass: what an operation returned, an input, a buffer that was read, or an output of the model.

    ``parents`` are indices of operations. ``path`` and ``output_index`` say which leaf of its call's value it is.
    ``stored_value`` and ``stored_transform`` are what was saved of it, in memory or in a file; ``unsaved`` says why
    nothing could be.
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
    unsaved: str = ""
    stored_value: Tensor | LazyTensor | None = None
    stored_transform: Tensor | LazyTensor | None = None

    @classmethod
    def of(cls, index: int, kind: OpKind, call: CapturedCall, parents: tuple[int, ...], value: Tensor) -> CapturedOp:
        """An operation for a value; where it was computed and what is saved of it is filled in afterwards."""
        # A nested tensor has no shape of its own.
        shape = () if value.is_nested else tuple(value.shape)
        nbytes = 0 if value.is_nested else value.numel() * value.element_size()
        gradient = value.grad_fn
        name = None if gradient is None else type(gradient).__name__
        return cls(index, kind, call, parents, shape, value.dtype, value.device, nbytes, value.requires_grad, name)

    @property
    def value(self) -> Tensor | None:
        """The saved value."""
        return _in_memory(self.stored_value)

    @value.setter
    def value(self, value: Tensor | None) -> None:
        self.stored_value = value

    @property
    def transformed(self) -> Tensor | None:
        """What the user's ``activation_postfunc`` made of the value."""
        return _in_memory(self.stored_transform)

    @transformed.setter
    def transformed(self, value: Tensor | None) -> None:
        self.stored_transform = value

    @property
    def is_saved(self) -> bool:
        """Whether anything was saved."""
        return self.stored_value is not None or self.stored_transform is not None

    @property
    def saved_bytes(self) -> int:
        """The size of what was saved."""
        return sum(stored.nbytes for stored in (self.stored_value, self.stored_transform) if stored is not None)

    @property
    def modules_around(self) -> Iterator[ModuleCall]:
        """The calls of submodules that it ran in, innermost first."""
        call = self.module
        while call is not None:
            if call.address:
                yield call
            call = call.parent

    @property
    def made_inside(self) -> bool:
        """Whether it is an operation without parents, such as ``torch.rand``."""
        return self.kind == "op" and not self.parents


def _in_memory(stored: Tensor | LazyTensor | None) -> Tensor | None:
    return stored.read() if isinstance(stored, LazyTensor) else stored


class ValueRead(msgspec.Struct, frozen=True):
    """Python looked at a tensor's value: ``bool(x)``, ``x.item()`` and the like.

    ``at`` is how many operations had run by then.
    """

    op: int
    how: str
    value: Any
    stack: Stack | None
    at: int


class FailedCall(msgspec.Struct, frozen=True, eq=False):
    """What ended a pass: the call of a function that raised, and the operations it read, or code of a module.

    ``call`` is None where no function of torch's raised; ``module`` is where it happened, None for the model itself.
    """

    error: str
    call: CapturedCall | None
    parents: tuple[int, ...]
    module: ModuleCall | None


class Capture:
    """Everything that was seen of a forward pass.

    ``module_calls`` are in the order in which they began, ``returns`` in the order in which they ended. ``composites``
    holds the operation of each leaf of a composite's value, by label, site and path. ``unseen`` says where ops ran that
    the graph does not have. ``started`` and ``ended`` are times of the clock; ``seconds`` is how long logging took,
    from the user's call to the history. ``output_class`` is the class of what the model returned, if no tensors were
    found in it. ``failure`` is what ended a pass that raised.
    """

    def __init__(self) -> None:
        self.ops: list[CapturedOp] = []
        self.module_calls: list[ModuleCall] = []
        self.returns: list[ModuleCall] = []
        self.value_reads: list[ValueRead] = []
        self.gradients: dict[int, Tensor] = {}
        self.composites: dict[tuple[str, str, str], int] = {}
        self.buffer_writes: list[tuple[str, int]] = []
        self.failure: FailedCall | None = None
        self.seed: int | None = None
        self.output_class = ""
        self.unseen: list[str] = []
        self.started = 0.0
        self.ended = 0.0
        self.seconds = 0.0


def template_of(value: Any, reference: Callable[[Tensor], Any]) -> Any:
    """The template of a nested argument: each tensor replaced by what ``reference`` makes of it."""
    return mapped(value, lambda leaf: reference(leaf) if isinstance(leaf, Tensor) else leaf)


def filled(template: Any, tensor: Callable[[Any], Any]) -> Any:
    """A template with each reference replaced by what ``tensor`` makes of it."""
    return mapped(template, lambda leaf: tensor(leaf) if isinstance(leaf, REFERENCES) else leaf)


def mapped(value: Any, replace: Callable[[Any], Any]) -> Any:
    """A copy of a nested value of tuples, lists, dicts and slices with each leaf replaced."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([mapped(item, replace) for item in value])
    if kind is dict:
        return {key: mapped(item, replace) for key, item in value.items()}
    if kind is slice:
        return slice(mapped(value.start, replace), mapped(value.stop, replace), mapped(value.step, replace))
    if isinstance(value, tuple) and _is_named(kind):
        return kind(*[mapped(item, replace) for item in value])
    return replace(value)


def flat(value: Any) -> Iterator[Any]:
    """The leaves of a nested value, in order."""
    kind = type(value)
    if kind is tuple or kind is list or (isinstance(value, tuple) and _is_named(kind)):
        for item in value:
            yield from flat(item)
    elif kind is dict:
        for item in value.values():
            yield from flat(item)
    elif kind is slice:
        yield from (value.start, value.stop, value.step)
    else:
        yield value


def without_tensors(template: Any) -> Any:
    """A template less its references; None where nothing else was in it."""
    if isinstance(template, REFERENCES):
        return None
    kind = type(template)
    if kind is tuple or kind is list:
        others = [item for item in template if not isinstance(item, REFERENCES)]
        if len(others) < len(template) and not others:
            return None
        return kind([without_tensors(item) for item in others])
    if kind is dict:
        return {k: without_tensors(v) for k, v in template.items() if not isinstance(v, REFERENCES)}
    return template


def _is_named(kind: type) -> bool:
    return hasattr(kind, "_fields")  # named tuples share no base class
