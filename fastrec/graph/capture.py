"""The listener that builds the raw graph while a forward pass runs."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from fastrec._torch.internals import (
    TensorBase,
    functorch_level,
    is_any_autocast_enabled,
    is_functorch_wrapper,
    no_function_modes,
)
from fastrec._torch.trees import argument_leaves, leaves
from fastrec.engines._protocol import BasicRun
from fastrec.events.position import Position
from fastrec.events.sites import Site
from fastrec.graph.raw import (
    Capture,
    CapturedCall,
    CapturedOp,
    ConstantTensor,
    ModuleCall,
    Overwritten,
    Parameter,
    Ref,
    ValueRead,
    flat,
    referenced,
)
from fastrec.graph.saving import Saver
from fastrec.graph.tracking import GeneratorStates, ModelState, StackReader, Transforms, Writes
from fastrec.ops.facts import OpFacts, reads_inplace_flag

_ATOMS = frozenset(
    (int, float, bool, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device, torch.Size)
)

# Functions by which Python looks at a value.
_LOOKS: Mapping[Any, str] = {
    getattr(Tensor, name): name.strip("_")
    for name in ("__bool__", "item", "__int__", "__float__", "__index__", "__complex__", "tolist")
}

_GRADIENTS: frozenset[Any] = frozenset({vars(TensorBase)["grad"].__get__})

_DATA_SETTERS: frozenset[Any] = frozenset({vars(TensorBase)["data"].__set__})


class GraphListener:
    """Runs each op of the pass, and notes where its arguments came from."""

    def __init__(self, state: ModelState, capture: Capture, saver: Saver, *, takes_inputs: bool) -> None:
        self._state = state
        self._capture = capture
        self._ops = capture.ops
        self._saver = saver
        self._keeps = saver.keeps_any
        self._takes_inputs = takes_inputs  # tensors from outside are inputs, for nobody has named the inputs
        self._rng = GeneratorStates()
        self._writes = Writes()
        self._transforms = Transforms()
        self._stacks = StackReader()
        self._values: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # which operation a tensor came from
        self._refs: list[Ref] = []
        self._constants: dict[int, tuple[weakref.ref[Tensor], int, ConstantTensor]] = {}
        self._rewritten: dict[int, int] = {}  # buffers that an operation wrote without returning them
        self._parents: list[int] = []
        self._parameters: list[Parameter] = []
        self._module: ModuleCall | None = None
        self._open: list[tuple[ModuleCall, FrameType]] = []
        self._numbers: dict[str, int] = {}
        self.outside: FrameType | None = None  # the frame that runs the pass: where call stacks begin

    # What the engine asks of any listener.

    def tap(self, place: Position, site: Site) -> None:
        """Nothing is tapped."""

    def may_keep(self, site: Site) -> bool:
        """All is to be seen."""
        return True

    def begin(self, entry: str) -> BasicRun:
        """A call of a root begins."""
        return BasicRun()

    def end(self, run: BasicRun, error: BaseException | None) -> bool:
        """A call of a root ended."""
        return False

    # What it tells one that runs the ops itself.

    def on_op(
        self, facts: OpFacts, label: str, site: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an op, and note it if it returns tensors."""
        reference = self._reference
        parents: list[int] = []
        parameters: list[Parameter] = []
        self._parents, self._parameters = parents, parameters
        told_args = tuple([a if type(a) in _ATOMS else reference(a) for a in args])
        told_kwargs = {k: a if type(a) in _ATOMS else reference(a) for k, a in kwargs.items()} if kwargs else kwargs
        states = self._rng.before(func, kwargs)
        started = perf_counter()
        out = func(*args, **kwargs) if kwargs else func(*args)
        seconds = perf_counter() - started
        writes = reads_inplace_flag(facts, args, kwargs)
        value = args[0] if out is None and writes and args else out
        if type(value) is not Tensor and next(leaves(value), None) is None:
            return out
        call = CapturedCall(
            func,
            facts.func_name,
            facts.layer_type,
            label,
            site,
            told_args,
            told_kwargs,
            tuple(dict.fromkeys(parameters)),
            states,
            seconds,
            self._stack(2),
            writes,
            _autocast() if is_any_autocast_enabled() else (),
        )
        with no_function_modes():
            self._returned(call, tuple(parents), value, args, kwargs)
        return out

    def on_composite(
        self, place: Position, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inside: Callable[[], Any]
    ) -> Any:
        """Run a composite; where nothing inside of it could be seen it is an op like any other."""
        first = len(self._ops)
        out = inside()
        found = self._produced(out)
        if len(found) == sum(1 for _ in leaves(out)):
            name = place.label, place.site.name
            self._capture.composites.update({(*name, path): op for path, op in found.items()})
            return out
        parents: list[int] = []
        parameters: list[Parameter] = []
        self._parents, self._parameters = parents, parameters
        call = CapturedCall(func, place.site.func_name, place.site.layer_type, place.label, place.site.name)
        call.args = tuple(map(self._reference, args))
        call.kwargs = {key: self._reference(value) for key, value in kwargs.items()}
        call.parameters = tuple(dict.fromkeys(parameters))
        call.stack = self._stack(2)
        inner = tuple(range(first, len(self._ops)))
        with no_function_modes():
            unseen = [value for _, value in leaves(out) if self._producer(value) is None]
            self._returned(call, tuple(dict.fromkeys((*parents, *inner[-1:]))), unseen, args, kwargs)
        return out

    def on_other_function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function that is no event; note if Python looks at a value, or gets a tensor by another name."""
        out = func(*args, **kwargs)
        how = _LOOKS.get(func)
        if how is not None:
            producer = self._producer(args[0])
            if producer is not None:
                look = ValueRead(producer, how, out if how != "tolist" else None, self._stack(2), len(self._ops))
                self._capture.truths.append(look)
        elif func in _DATA_SETTERS:
            producer = self._producer(args[1])
            if producer is None:
                self._values.pop(id(args[0]), None)
            else:
                self._bind(args[0], producer)  # `x.data = y`: the values of another tensor
        elif func in _GRADIENTS:
            if isinstance(out, Tensor):
                self._constant(out)  # what a backward pass left there, not what its tensor is
        elif isinstance(out, Tensor) and args and isinstance(args[0], Tensor) and self._producer(out) is None:
            producer = self._producer(args[0])  # `x.data`: the same values in another tensor
            if producer is not None:
                self._bind(out, producer)
        return out

    def on_enter(self, place: Position, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called."""
        frame = sys._getframe(2)
        stack = self._stack(3)  # without the frame that stands for this call
        site = place.site
        address = site.frames[-1].module_address
        call = ModuleCall(address, site.frames[-1].module_type, place.number, self._module, stack)
        found = {}
        plain = len(args) == 1 and type(args[0]) is Tensor and not kwargs
        for path, value in (("[0]", args[0]),) if plain else argument_leaves(args, kwargs):
            producer = self._producer(value)
            if producer is None and self._takes_inputs and not self._open:
                producer = self._input(value, f"{site.name}{path}").index
            if producer is not None:
                found[path] = producer
        call.entered_at = found
        self._open.append((call, frame))
        self._module = call
        call.ops = len(self._ops)
        self._capture.module_calls.append(call)
        call.started = perf_counter()

    def on_leave(self, place: Position, out: Any) -> None:
        """A module returned."""
        call, _ = self._open.pop()
        self._close(call)
        call.exited_at = self._produced(out)
        self._capture.returns.append(call)

    def on_opaque_module(self, place: Position, module: nn.Module, out: Any) -> None:
        """A module of whose inside nothing was seen is one op."""
        entered = self._open[-1][0]
        site = place.site
        call = CapturedCall(
            module, site.func_name, site.layer_type, place.label, f"{site.frames[-1].module_address}/:hidden"
        )
        call.args = tuple(self._refs[op] for op in entered.entered)
        call.stack = entered.stack
        with no_function_modes():
            self._returned(call, entered.entered, out, (), {})

    def on_exception(self, place: Position) -> None:
        """An exception left a module, and those inside of it before."""
        address = place.site.frames[-1].module_address
        if any((call.address, call.number) == (address, place.number) for call, _ in self._open):
            left = None
            while left is None or (left.address, left.number) != (address, place.number):
                left, _ = self._open.pop()
                self._close(left)

    # What whoever makes the pass tells.

    def inputs(self, prefix: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The pass begins with these arguments."""
        for path, value in argument_leaves(args, kwargs):
            if self._producer(value) is None:
                self._input(value, f"{prefix}{path}")

    def outputs(self, out: Any) -> None:
        """The pass returned."""
        for path, value in leaves(out):
            self._parents = []
            with no_function_modes():
                template = self._tensor(value)
                call = CapturedCall(None, "", "output", "", f":out{path}")
                call.args = (template,)
                op = self._add("output", call, tuple(self._parents), value)
                op.path = path
                op.address = path

    def finish(self) -> None:
        """Let go of the capture, whoever still holds the listener."""
        self._capture = Capture()
        self._ops = self._capture.ops
        self._refs = []
        for held in (self._values, self._constants, self._rewritten):
            held.clear()

    # Inside.

    def _reference(self, argument: Any) -> Any:
        kind = type(argument)
        if kind is Tensor:
            return self._tensor(argument)
        if kind is nn.Parameter:
            return self._source(argument) if id(argument) not in self._values else self._tensor(argument)
        if kind is tuple and _ATOMS.issuperset(map(type, argument)):
            return argument
        return referenced(argument, self._tensor)

    def _tensor(self, value: Tensor) -> Any:
        held = self._values.get(id(value))
        if held is None or held[0]() is not value:
            return self._source(value)
        op = held[1]
        if op not in self._parents:
            self._parents.append(op)
        if self._writes.by_storage:
            with no_function_modes():
                later = self._writes.since(value, op)
                if later:
                    self._parents.extend(w for w in later if w not in self._parents)
                    return Overwritten(op, later, self._saver.snapshot(value))
        return self._refs[op]

    def _source(self, value: Tensor) -> Any:
        """The reference to a tensor that no operation has produced."""
        parameter = self._state.parameter(value)
        if parameter is not None:
            self._parameters.append(parameter)
            return parameter
        address = self._state.buffer_address(value)
        wrapped = None
        if self._transforms.inside or is_functorch_wrapper(value):
            wrapped = self._transforms.producer(value, self._producer)
        if wrapped is not None:
            index = wrapped
        elif address is not None:
            index = self._buffer(value, address).index
        elif self._takes_inputs and id(value) not in self._constants and not self._state.holds(value):
            index = self._input(value, ":in").index
        else:
            return self._constant(value)
        if index not in self._parents:
            self._parents.append(index)
        return self._refs[index]

    def _constant(self, value: Tensor) -> ConstantTensor:
        version = 0 if value.is_inference() else value._version
        held = self._constants.get(id(value))
        if held is not None and held[0]() is value and held[1] == version:
            return held[2]
        with no_function_modes():
            shape = () if value.is_nested else tuple(value.shape)
            constant = ConstantTensor(shape, value.dtype, self._saver.snapshot(value))
        self._constants[id(value)] = (weakref.ref(value), version, constant)
        return constant

    def _input(self, value: Tensor, site: str) -> CapturedOp:
        op = self._add_source("input", value, site)
        op.address = site.rpartition(":in")[2]
        return op

    def _buffer(self, value: Tensor, address: str) -> CapturedOp:
        writer = self._rewritten.pop(id(value), None)
        op = self._add_source("buffer", value, f"{address}:buffer", () if writer is None else (writer,))
        op.address = address
        op.module = self._module
        return op

    def _add_source(self, kind: Any, value: Tensor, site: str, parents: tuple[int, ...] = ()) -> CapturedOp:
        number = self._numbers[kind] = self._numbers.get(kind, 0) + 1
        with no_function_modes():
            op = self._add(kind, CapturedCall(None, "", kind, f"{kind}_{number}", site), parents, value)
            self._bind(value, op.index)
        return op

    def _returned(
        self, call: CapturedCall, parents: tuple[int, ...], out: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """An op returned: each tensor in its value is an operation."""
        if type(out) is Tensor:
            self._value(call, parents, out)
            found: Iterable[Tensor] = (out,)
        else:
            found = []
            for index, (path, value) in enumerate(leaves(out)):
                op = self._value(call, parents, value)
                if path:
                    op.path, op.output_index = path, index
                found.append(value)
        if call.inplace:
            self._note_writes(call, found, args, kwargs)

    def _value(self, call: CapturedCall, parents: tuple[int, ...], value: Tensor) -> CapturedOp:
        index = len(self._ops)
        op = CapturedOp.of(index, "op", call, parents, value)
        op.module = self._module
        self._ops.append(op)
        self._refs.append(Ref(index))
        self._values[id(value)] = (weakref.ref(value), index)
        if self._keeps:
            self._saver.save(op, value)
        if functorch_level() is not None:
            self._transforms.note(value, op.index)
        return op

    def _add(self, kind: Any, call: CapturedCall, parents: tuple[int, ...], value: Tensor) -> CapturedOp:
        index = len(self._ops)
        op = CapturedOp.of(index, kind, call, parents, value)
        self._ops.append(op)
        self._refs.append(Ref(index))
        self._saver.save(op, value)
        return op

    def _bind(self, value: Tensor, op: int) -> None:
        self._values[id(value)] = (weakref.ref(value), op)

    def _produced(self, out: Any) -> dict[str, int]:
        """The operation that each leaf of a value came from."""
        if type(out) is Tensor:
            producer = self._producer(out)
            return {} if producer is None else {"": producer}
        found = {path: self._producer(value) for path, value in leaves(out)}
        return {path: op for path, op in found.items() if op is not None}

    def _producer(self, value: Any) -> int | None:
        held = self._values.get(id(value))
        return held[1] if held is not None and held[0]() is value else None

    def _note_writes(
        self, call: CapturedCall, found: Iterable[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Which memory an op wrote to: its output if that is an argument, and what it writes beside."""
        written = [value for value in found if any(value is a for a in args)]
        if not written:
            given = {id(a) for a in flat((args, dict(kwargs))) if isinstance(a, Tensor)}
            written = [value for value in found if id(value) in given]
        for value in written:
            op = self._values[id(value)][1]
            self._writes.note(value, op)
            self._wrote(value, op)
        if not written:  # a batch norm returns a new tensor and writes its statistics beside
            for value in self._state.buffers_among(flat((args, dict(kwargs)))):
                self._values.pop(id(value), None)
                op = self._rewritten[id(value)] = self._ops[-1].index
                self._wrote(value, op)

    def _wrote(self, value: Tensor, op: int) -> None:
        address = self._state.buffer_address(value)
        if address is not None:
            self._capture.buffer_writes.append((address, op))

    def _close(self, call: ModuleCall) -> None:
        call.seconds = perf_counter() - call.started
        call.ops = len(self._ops) - call.ops
        self._module = call.parent

    def _stack(self, depth: int) -> Any:
        stop, outside = self.outside, None
        if self._open:
            call, stop = self._open[-1]
            outside = call.stack
        return self._stacks.read(sys._getframe(depth + 1), stop, outside)


def _autocast() -> tuple[tuple[str, torch.dtype], ...]:
    return tuple((d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d))
