"""A history in a file: its structure as MessagePack, its tensors as HDF5 data sets.

    save_history(HistoryContents(model_name, capture, parameters, conditions), path, overwrite=False)
    contents = read_history(path)                    # tensors are read on demand

The structs of a capture are written as arrays of their fields, in order. What several of them share (calls, module
calls, frames, parameters, random states) is written once and referred to by number. A tensor is referred to by its name
in the file, and a template becomes tagged lists, because MessagePack has neither tuples nor slices.

Reading never runs anything from the file: functions are stored by name only, arguments that are not plain data as their
repr, and every field is checked against its type. So an untrusted file gives a history or a DamagedFileError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor, nn

from fastrec._errors import DamagedFileError, FastrecError, RecordingNotFoundError
from fastrec.events.context import torch_dtype
from fastrec.graph.call_stack import line_of
from fastrec.graph.conditions import BranchesTaken, Condition, Conditions
from fastrec.graph.raw import (
    REFERENCES,
    Capture,
    CapturedCall,
    CapturedOp,
    ConstantTensor,
    ModuleCall,
    Overwritten,
    Parameter,
    Ref,
    Reference,
    Stack,
    ValueRead,
)
from fastrec.graph.tensor_file import LazyTensor, TensorFile

FORMAT = "fastrec history 1"

S = TypeVar("S", bound=msgspec.Struct)

T = TypeVar("T")


class HistoryContents(msgspec.Struct):
    """The parts of a history that a file holds: everything but the model."""

    model_name: str
    capture: Capture
    parameters: Sequence[Parameter]
    conditions: Conditions


class _Structure(msgspec.Struct):
    """Everything in a history but its tensors, as it is in the file; names and order of the elements are the format.

    ``parameters`` are (address, shape, dtype, requires_grad, whether the model lists it), ``frames`` are (number of the
    frame around it, file, line, function). ``conditions`` are stored because finding them needs the model's source: the
    tests, the operations in each role, and the branches that each operation ran in.
    """

    format: str
    model_name: str
    parameters: list[tuple[str, tuple[int, ...], torch.dtype, bool, bool]]
    frames: list[tuple[int, str, int, str]]
    rng: list[dict[str, LazyTensor]]
    calls: list[Any]
    ops: list[Any]
    module_calls: list[Any]
    returns: list[int]
    value_reads: list[Any] = msgspec.field(name="truths")
    gradients: dict[int, LazyTensor]
    composites: list[tuple[str, str, str, int]]
    buffer_writes: list[tuple[str, int]]
    conditions: tuple[list[Condition], dict[str, list[int]], BranchesTaken]
    seed: int
    started: float
    ended: float
    seconds: float


# The fields of captured structs that are something else in the file: numbers of things that are written elsewhere, -1
# for None, and templates. A method of the same name converts each: that of _Writer on the way out, that of _Reader on
# the way in.
_CONVERTED: Mapping[str, Any] = {
    **dict.fromkeys(("call", "module", "parent", "stack", "rng"), int),
    "parameters": list[int],
    **dict.fromkeys(("args", "kwargs", "value"), Any),
}

_LEFT_OUT = ("index", "func")


def _array_type(struct: type[msgspec.Struct]) -> Any:
    """The type of a captured struct in the file."""
    types = {**_CONVERTED, **dict.fromkeys(("stored_value", "stored_transform"), LazyTensor | None)}
    fields = [(f.name, types.get(f.name, f.type)) for f in msgspec.structs.fields(struct) if f.name not in _LEFT_OUT]
    return msgspec.defstruct(f"{struct.__name__}Array", fields, array_like=True)


_ARRAYS: Mapping[type[msgspec.Struct], Any] = {
    struct: _array_type(struct) for struct in (CapturedOp, CapturedCall, ModuleCall, ValueRead)
}

# What a damaged file raises: its numbers and names may refer to anything.
_DAMAGE = (msgspec.MsgspecError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

_ROLES = ("terminal_bools", "tested", "evaluating", "starts")


def save_history(history: HistoryContents, path: str | PathLike[str], *, overwrite: bool) -> None:
    """Write a history with all its tensors."""
    file = TensorFile(Path(path)).create(overwrite=overwrite)
    try:
        finish_history(history, file)
    except BaseException:
        file.abandon()
        raise


def finish_history(history: HistoryContents, file: TensorFile) -> None:
    """Write the parts of a history that are not in the file yet, and close the file."""
    structure = _Writer(history, file).structure()
    file.put_bytes("structure", msgspec.msgpack.encode(structure, enc_hook=_encode_leaf))
    file.finish()


def _encode_leaf(value: Any) -> Any:
    """A value of a type that MessagePack does not have."""
    if isinstance(value, LazyTensor):
        return value.name, value.shape, value.dtype
    assert isinstance(value, torch.dtype | torch.device)
    return str(value).removeprefix("torch.")


class _Shared:
    """Things that are written once and referred to by number; identity tells them apart."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self._numbers: dict[int, int] = {}

    def number(self, thing: Any, write: Callable[[Any], Any]) -> int:
        """The number of a thing, which is written when it is seen for the first time."""
        number = self._numbers.get(id(thing))
        if number is None:
            written = write(thing)
            number = self._numbers[id(thing)] = len(self.written)
            self.written.append(written)
        return number


class _Writer:
    """Turns a history into plain data, and its tensors into data sets."""

    def __init__(self, history: HistoryContents, file: TensorFile) -> None:
        self._history = history
        self._file = file
        self._listed = {id(parameter.tensor) for parameter in history.parameters}
        self._module_numbers = {id(call): number for number, call in enumerate(history.capture.module_calls)}
        self._calls, self._frames, self._states, self._parameters = _Shared(), _Shared(), _Shared(), _Shared()
        self._others: dict[int, LazyTensor] = {}  # constants and overwritten values

    def structure(self) -> _Structure:
        """Everything in the history but its tensors, which are written on the way."""
        capture, conditions = self._history.capture, self._history.conditions
        self.parameters(self._history.parameters)
        return _Structure(
            format=FORMAT,
            model_name=self._history.model_name,
            ops=[self._op(op) for op in capture.ops],
            module_calls=[self._array(call) for call in capture.module_calls],
            returns=[self.module(call) for call in capture.returns],
            value_reads=[self._array(read) for read in capture.value_reads],
            gradients={index: self._file.put(f"gradients/{index}", g) for index, g in capture.gradients.items()},
            composites=[(*key, index) for key, index in capture.composites.items()],
            buffer_writes=capture.buffer_writes,
            conditions=(
                [msgspec.structs.replace(test, value=self.value(test.value)) for test in conditions],
                {role: sorted(getattr(conditions, role)) for role in _ROLES},
                conditions.branches,
            ),
            seed=capture.seed,
            started=capture.started,
            ended=capture.ended,
            seconds=capture.seconds,
            parameters=self._parameters.written,
            frames=self._frames.written,
            rng=self._states.written,
            calls=self._calls.written,
        )

    def _array(self, struct: msgspec.Struct) -> list[Any]:
        fields = {name: getattr(struct, name) for name in struct.__struct_fields__ if name not in _LEFT_OUT}
        return [getattr(self, name)(value) if name in _CONVERTED else value for name, value in fields.items()]

    def _op(self, op: CapturedOp) -> list[Any]:
        value = self._stored(f"values/{op.index}", op.stored_value)
        transform = self._stored(f"transformed/{op.index}", op.stored_transform)
        return self._array(msgspec.structs.replace(op, stored_value=value, stored_transform=transform))

    def _stored(self, name: str, stored: Tensor | LazyTensor | None) -> LazyTensor | None:
        if stored is None:
            return None
        if name in self._file.names:  # it was written as soon as it appeared
            return LazyTensor(self._file, name, tuple(stored.shape), stored.dtype)
        return self._file.put(name, stored.read() if isinstance(stored, LazyTensor) else stored)

    def call(self, call: CapturedCall) -> int:
        return self._calls.number(call, self._array)

    def module(self, call: ModuleCall | None) -> int:
        return self._module_numbers.get(id(call), -1)

    parent = module

    def stack(self, stack: Stack | None) -> int:
        chain = []
        while stack is not None:
            chain.append(stack)
            stack = stack[0]
        # Outermost first, so that each finds the frame around it; recursion would fail for long chains.
        numbers = [self._frames.number(frame, self._frame) for frame in reversed(chain)]
        return numbers[-1] if numbers else -1

    def _frame(self, frame: Stack) -> tuple[int, str, int, str]:
        around, code, instruction = frame
        number = -1 if around is None else self._frames.number(around, self._frame)
        return number, code.co_filename, line_of(code, instruction), code.co_name

    def rng(self, states: Mapping[str, Tensor]) -> int:
        return self._states.number(states, self._put_states) if states else -1

    def _put_states(self, states: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
        folder = f"rng/{len(self._states.written)}"
        return {device: self._file.put(f"{folder}/{k}", state) for k, (device, state) in enumerate(states.items())}

    def parameters(self, parameters: Iterable[Parameter]) -> list[int]:
        return [self._parameters.number(p.tensor, partial(self._parameter, p.address)) for p in parameters]

    def _parameter(self, address: str, tensor: Tensor) -> tuple[Any, ...]:
        return address, tuple(tensor.shape), tensor.dtype, tensor.requires_grad, id(tensor) in self._listed

    def value(self, template: Any) -> Any:
        return encoded_template(template, self._reference)

    args = kwargs = value

    def _reference(self, reference: Reference) -> list[Any]:
        if isinstance(reference, Ref):
            return ["ref", reference.op]
        if isinstance(reference, Parameter):
            return ["parameter", *self.parameters([reference])]
        lazy = self._others.get(id(reference))
        if lazy is None:
            if reference.value is not None:
                lazy = self._file.put(f"others/{len(self._others)}", reference.value)
            elif isinstance(reference, ConstantTensor):
                lazy = LazyTensor(self._file, "", reference.shape, reference.dtype)
            else:
                lazy = LazyTensor(self._file, "", (), torch.float32)
            self._others[id(reference)] = lazy
        if isinstance(reference, Overwritten):
            return ["stale", reference.op, reference.written_by, lazy]
        return ["constant", lazy]


def read_history(path: str | PathLike[str]) -> HistoryContents:
    """What the file of a history holds; tensors are read on demand.

    Raises RecordingNotFoundError, or DamagedFileError for a file that is not a history.
    """
    if not Path(path).exists():
        raise RecordingNotFoundError(f"there is no file {path}")
    file = TensorFile(Path(path))
    content = file.array("structure")
    try:
        return _Reader(file, content.tobytes()).contents()
    except FastrecError:
        raise
    except _DAMAGE as error:
        raise DamagedFileError(f"{path} is not a history, or a damaged one: {error}") from error


class _Reader:
    """Makes a capture out of plain data."""

    def __init__(self, file: TensorFile, content: bytes) -> None:
        self._file = file
        self._structure = structure = msgspec.msgpack.decode(content, type=_Structure, dec_hook=self._leaf)
        if structure.format != FORMAT:
            raise DamagedFileError(
                f"{file.path} is in the format {structure.format!r}, and this version of fastrec reads {FORMAT!r}"
            )
        self._parameters = [
            Parameter(address, nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad))
            for address, shape, dtype, requires_grad, _ in structure.parameters
        ]
        self._stacks: list[Stack] = []
        for around, path, line, function in structure.frames:
            # In place of the code of a frame, code that does nothing.
            code = _EMPTY_CODE.replace(co_filename=path, co_firstlineno=max(line, 0), co_name=function)
            self._stacks.append((self.stack(around), code, -1))
        self._states = [{device: lazy.read() for device, lazy in states.items()} for states in structure.rng]
        self._module_calls: list[ModuleCall] = []
        for array in structure.module_calls:
            self._module_calls.append(self._struct(ModuleCall, array))
        self._calls = [self._struct(CapturedCall, array, func=None) for array in structure.calls]

    def _leaf(self, kind: type, data: Any) -> Any:
        """A value of a type that MessagePack does not have."""
        if kind is torch.dtype:
            return torch_dtype(data)
        if kind is torch.device:
            return torch.device(data)
        if kind is LazyTensor:
            array = msgspec.convert(data, tuple[str, tuple[int, ...], torch.dtype], dec_hook=self._leaf)
            return LazyTensor(self._file, *array)
        return data

    def contents(self) -> HistoryContents:
        """What the file holds."""
        structure, capture = self._structure, Capture()
        capture.ops = [self._struct(CapturedOp, array, index=index) for index, array in enumerate(structure.ops)]
        for op in capture.ops:  # all code that walks a graph relies on this
            if any(not 0 <= parent < op.index for parent in op.parents):
                raise ValueError(f"operation {op.index} has parents that do not come before it")
        capture.module_calls = self._module_calls
        capture.returns = [self._module_calls[number] for number in structure.returns]
        capture.value_reads = [self._struct(ValueRead, array) for array in structure.value_reads]
        capture.gradients = {index: lazy.read() for index, lazy in structure.gradients.items()}
        capture.composites = {(label, site, path): op for label, site, path, op in structure.composites}
        capture.buffer_writes = structure.buffer_writes
        capture.seed, capture.started = structure.seed, structure.started
        capture.ended, capture.seconds = structure.ended, structure.seconds
        listed = [p for p, (*_, listed) in zip(self._parameters, structure.parameters, strict=True) if listed]
        return HistoryContents(structure.model_name, capture, listed, self._conditions())

    def _conditions(self) -> Conditions:
        conditions, ops, branches = self._structure.conditions
        tests = [msgspec.structs.replace(test, value=self.value(test.value)) for test in conditions]
        terminal_bools, tested, evaluating, starts = (ops[role] for role in _ROLES)
        return Conditions(set(terminal_bools), tested, set(evaluating), set(starts), lambda: tests, lambda: branches)

    def _struct(self, struct: type[S], array: Any, **left_out: Any) -> S:
        fields = msgspec.structs.asdict(msgspec.convert(array, _ARRAYS[struct], dec_hook=self._leaf))
        for name in _CONVERTED.keys() & fields.keys():
            fields[name] = getattr(self, name)(fields[name])
        return struct(**fields, **left_out)

    def call(self, number: int) -> CapturedCall:
        return self._calls[number]

    def module(self, number: int) -> ModuleCall | None:
        return self._module_calls[number] if number >= 0 else None

    parent = module

    def stack(self, number: int) -> Stack | None:
        return self._stacks[number] if number >= 0 else None

    def rng(self, number: int) -> Mapping[str, Tensor]:
        return self._states[number] if number >= 0 else {}

    def parameters(self, numbers: Iterable[int]) -> tuple[Parameter, ...]:
        return tuple(self._parameters[number] for number in numbers)

    def value(self, data: Any) -> Any:
        return decoded_template(data, self._reference)

    def args(self, data: Any) -> tuple[Any, ...]:
        return _checked(self.value(data), tuple)

    def kwargs(self, data: Any) -> dict[str, Any]:
        return _checked(self.value(data), dict)

    def _reference(self, data: Any) -> Reference:
        match data:
            case ["ref", int(op)]:
                return Ref(op)
            case ["parameter", int(number)]:
                return self._parameters[number]
            case ["stale", int(op), list(writers), array]:
                return Overwritten(op, tuple(writers), self._read_if_saved(self._leaf(LazyTensor, array)))
            case ["constant", array]:
                lazy = self._leaf(LazyTensor, array)
                return ConstantTensor(lazy.shape, lazy.dtype, self._read_if_saved(lazy))
        raise DamagedFileError(f"an argument in the file is not a tensor: {str(data)[:100]}")

    def _read_if_saved(self, lazy: LazyTensor) -> Tensor | None:
        return lazy.read() if lazy.name else None


_EMPTY_CODE = compile("", "", "exec")


def _checked(arguments: Any, kind: type[T]) -> T:
    if type(arguments) is not kind:
        raise ValueError(f"the arguments of a call are not a {kind.__name__}")
    return arguments


# Templates as tagged lists: ["tuple", [...]], ["slice", [1, None, None]], ["torch", "float32"], ["tensor", ...].

_PLAIN = (bool, float, str, type(None))

_TORCH_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)


class OpaqueArgument(msgspec.Struct, frozen=True):
    """The repr of an argument that a file can't hold."""

    text: str

    def __repr__(self) -> str:
        return self.text


def encoded_template(template: Any, reference: Callable[[Any], Any]) -> Any:
    """A template as plain data; ``reference`` encodes its references to tensors."""
    kind = type(template)
    if kind in _PLAIN or (kind is int and -(2**63) <= template < 2**63):  # MessagePack has integers of 64 bits
        return template
    if isinstance(template, tuple | list):
        return ["list" if kind is list else "tuple", [encoded_template(item, reference) for item in template]]
    if kind is dict:
        return ["dict", [[encoded_template(part, reference) for part in item] for item in template.items()]]
    if kind is slice:
        ends = (template.start, template.stop, template.step)
        return ["slice", [encoded_template(end, reference) for end in ends]]
    if isinstance(template, REFERENCES):
        return ["tensor", reference(template)]
    return _encoded_constant(template)


def _encoded_constant(value: Any) -> list[Any]:
    if value is Ellipsis:
        return ["ellipsis"]
    if type(value) is int:
        return ["int", str(value)]
    if isinstance(value, torch.device):
        return ["device", str(value)]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, _TORCH_CONSTANTS):
        return ["torch", str(value).removeprefix("torch.")]
    return ["opaque", repr(value)[:1000]]


def decoded_template(data: Any, reference: Callable[[Any], Any]) -> Any:
    """The template that was encoded, with an OpaqueArgument for each argument that could not be."""
    if not isinstance(data, list):
        return data
    match data:
        case ["tensor", encoded]:
            return reference(encoded)
        case ["list", list(items)]:
            return [decoded_template(item, reference) for item in items]
        case ["tuple", list(items)]:
            return tuple(decoded_template(item, reference) for item in items)
        case ["slice", list(items)]:
            return slice(*[decoded_template(item, reference) for item in items])
        case ["dict", list(items)]:
            return {decoded_template(k, reference): decoded_template(v, reference) for k, v in items}
    return _decoded_constant(data)


def _decoded_constant(data: list[Any]) -> Any:
    match data:
        case ["ellipsis"]:
            return Ellipsis
        case ["int", str(text)]:
            return int(text)
        case ["device", str(text)]:
            return torch.device(text)
        case ["complex", real, imaginary]:
            return complex(real, imaginary)
        # Only constants of torch: a name from the file must not reach a function.
        case ["torch", str(name)] if isinstance(constant := getattr(torch, name, None), _TORCH_CONSTANTS):
            return constant
        case ["opaque", str(text)]:
            return OpaqueArgument(text)
    raise DamagedFileError(f"an argument in the file is neither plain data nor a tensor: {str(data)[:100]}")
