"""The structure of a history as it lies in a file, encoded as MessagePack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import CodeType
from typing import Any, Literal

import h5py
import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from fastrec._errors import (
    DamagedFileError,
    FastrecError,
    RecordingExistsError,
    RecordingFileError,
    RecordingNotFoundError,
)
from fastrec.events.context import torch_dtype
from fastrec.graph.conditions import Condition, Conditions
from fastrec.graph.raw import (
    Capture,
    CapturedCall,
    CapturedOp,
    ConstantTensor,
    ModuleCall,
    Overwritten,
    Parameter,
    Ref,
    Stack,
    ValueRead,
)
from fastrec.graph.saving import copied
from fastrec.graph.tracking import line_of

FORMAT = "fastrec history 1"


class FileTensor(msgspec.Struct, array_like=True):
    """A tensor by its name in the file; an empty name where no values were kept."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class FileParameter(msgspec.Struct, array_like=True):
    """A parameter without its values; ``listed`` if the model lists it, which one made during the pass it does not."""

    address: str
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool
    listed: bool


class FileFrame(msgspec.Struct, array_like=True):
    """A frame of a call stack, with the number of the frame outside, -1 for none."""

    outside: int
    file: str
    line: int
    function: str


class FileCall(msgspec.Struct, array_like=True):
    """A call; numbers lead to parameters, frames and random states, -1 to none."""

    func_name: str
    layer_type: str
    label: str
    site: str
    args: Any
    kwargs: Any
    parameters: list[int]
    rng: int
    seconds: float
    stack: int
    inplace: bool
    autocast: list[tuple[str, str]]


class FileOp(msgspec.Struct, array_like=True):
    """An operation; numbers lead to its call and its module call."""

    kind: Literal["op", "input", "buffer", "output"]
    call: int
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    device: str
    nbytes: int
    requires_grad: bool
    grad_fn: str | None
    module: int
    path: str
    output_index: int | None
    address: str
    unsaved: str
    value: FileTensor | None
    transformed: FileTensor | None


class FileModuleCall(msgspec.Struct, array_like=True):
    """A call of a module."""

    address: str
    kind: str
    number: int
    parent: int
    stack: int
    entered_at: dict[str, int]
    exited_at: dict[str, int]
    ops: int
    started: float
    seconds: float


class FileTruth(msgspec.Struct, array_like=True):
    """A look at a value."""

    op: int
    how: str
    value: Any
    stack: int
    at: int


class FileConditions(msgspec.Struct, array_like=True):
    """What was known of the conditions, for which the source was needed."""

    conditions: list[Condition]
    ops: dict[str, list[int]]
    branches: dict[int, tuple[tuple[int, Literal["then", "else"]], ...]]


class FileHistory(msgspec.Struct):
    """All of a history but its tensors."""

    format: str
    model_name: str
    parameters: list[FileParameter]
    frames: list[FileFrame]
    rng: list[dict[str, FileTensor]]
    calls: list[FileCall]
    ops: list[FileOp]
    module_calls: list[FileModuleCall]
    returns: list[int]
    truths: list[FileTruth]
    gradients: dict[int, FileTensor]
    composites: list[tuple[str, str, str, int]]
    buffer_writes: list[tuple[str, int]]
    conditions: FileConditions
    seed: int
    started: float
    ended: float
    seconds: float


class HistoryContents(msgspec.Struct):
    """What a file holds of a history: all but the model."""

    model_name: str
    capture: Capture
    parameters: Sequence[Parameter]
    conditions: Conditions


def read_history(path: str | PathLike[str]) -> HistoryContents:
    """What the file of a history holds; tensors are read when asked for.

    Raises RecordingNotFoundError, or DamagedFileError for a file that is no history.
    """
    if not Path(path).exists():
        raise RecordingNotFoundError(f"there is no file {path}")
    file = TensorFile(Path(path))
    try:
        told = msgspec.msgpack.decode(file.array("structure").tobytes(), type=FileHistory)
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is no history: {error}") from error
    if told.format != FORMAT:
        raise DamagedFileError(f"{path} is a {told.format!r}, and this version reads {FORMAT!r}")
    try:
        return _Reader(told, file).contents()
    except FastrecError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DamagedFileError(f"{path} does not hold together: {error}") from error


class _Reader:
    """Makes the capture out of plain data."""

    def __init__(self, told: FileHistory, file: TensorFile) -> None:
        self._told = told
        self._file = file
        self._parameters = [
            Parameter(p.address, nn.Parameter(_form(p.shape, p.dtype), requires_grad=p.requires_grad))
            for p in told.parameters
        ]
        self._stacks: list[Stack] = []
        for frame in told.frames:
            outside = self._stacks[frame.outside] if frame.outside >= 0 else None
            self._stacks.append((outside, _code(frame.file, frame.line, frame.function), -1))
        self._rng = [{device: self._read(t) for device, t in states.items()} for states in told.rng]

    def contents(self) -> HistoryContents:
        told, capture = self._told, Capture()
        for each in told.module_calls:
            parent = capture.module_calls[each.parent] if each.parent >= 0 else None
            call = ModuleCall(each.address, each.kind, each.number, parent, self._stack(each.stack))
            call.entered_at, call.exited_at = each.entered_at, each.exited_at
            call.ops, call.started, call.seconds = each.ops, each.started, each.seconds
            capture.module_calls.append(call)
        calls = [self._call(number) for number in range(len(told.calls))]
        capture.ops = [self._op(index, each, calls, capture) for index, each in enumerate(told.ops)]
        capture.returns = [capture.module_calls[number] for number in told.returns]
        capture.truths = [
            ValueRead(t.op, t.how, decoded_argument(t.value, lambda _: None), self._stack(t.stack), t.at)
            for t in told.truths
        ]
        capture.gradients = {index: self._read(each) for index, each in told.gradients.items()}
        capture.composites = {(label, site, path): index for label, site, path, index in told.composites}
        capture.buffer_writes = list(told.buffer_writes)
        capture.seed, capture.started = told.seed, told.started
        capture.ended, capture.seconds = told.ended, told.seconds
        self._check(capture)
        listed = [p for p, each in zip(self._parameters, told.parameters, strict=True) if each.listed]
        return HistoryContents(told.model_name, capture, listed, _conditions(told))

    def _check(self, capture: Capture) -> None:
        """Operations come after their parents, as all that reads a graph relies on."""
        for op in capture.ops:
            if any(not 0 <= parent < op.index for parent in op.parents):
                raise ValueError(f"operation {op.index} has parents that do not come before it")

    def _call(self, number: int) -> CapturedCall:
        each = self._told.calls[number]
        call = CapturedCall(None, each.func_name, each.layer_type, each.label, each.site)
        call.args = decoded_argument(each.args, self._reference)
        call.kwargs = decoded_argument(each.kwargs, self._reference)
        call.parameters = tuple(self._parameters[n] for n in each.parameters)
        call.rng = self._rng[each.rng] if each.rng >= 0 else {}
        call.seconds, call.stack, call.inplace = each.seconds, self._stack(each.stack), each.inplace
        call.autocast = tuple((device, torch_dtype(dtype)) for device, dtype in each.autocast)
        if (type(call.args), type(call.kwargs)) != (tuple, dict):
            raise ValueError(f"call {number} has no arguments")
        return call

    def _op(self, index: int, each: FileOp, calls: Sequence[CapturedCall], capture: Capture) -> CapturedOp:
        op = CapturedOp(
            *(index, each.kind, calls[each.call], each.parents, each.shape, torch_dtype(each.dtype)),
            *(torch.device(each.device), each.nbytes, each.requires_grad, each.grad_fn),
        )
        op.module = capture.module_calls[each.module] if each.module >= 0 else None
        op.path, op.output_index, op.address, op.unsaved = each.path, each.output_index, each.address, each.unsaved
        op.held, op.held_transformed = self._stored(each.value), self._stored(each.transformed)
        return op

    def _reference(self, told: Any) -> Any:
        match told:
            case ["ref", int(op)]:
                return Ref(op)
            case ["parameter", int(number)]:
                return self._parameters[number]
            case ["stale", int(op), list(writers), each]:
                return Overwritten(op, tuple(writers), self._optional(each))
            case ["constant", each]:
                tensor = msgspec.convert(each, FileTensor)
                return ConstantTensor(tensor.shape, torch_dtype(tensor.dtype), self._optional(each))
        raise DamagedFileError(f"an argument in the file is no tensor: {str(told)[:100]}")

    def _optional(self, told: Any) -> Tensor | None:
        tensor = msgspec.convert(told, FileTensor)
        return self._read(tensor) if tensor.name else None

    def _stored(self, told: FileTensor | None) -> LazyTensor | None:
        return None if told is None else LazyTensor(self._file, told.name, told.shape, torch_dtype(told.dtype))

    def _read(self, told: FileTensor) -> Tensor:
        return LazyTensor(self._file, told.name, told.shape, torch_dtype(told.dtype)).read()

    def _stack(self, number: int) -> Stack | None:
        return self._stacks[number] if number >= 0 else None


_BLANK = compile("", "", "exec")


def _code(file: str, line: int, function: str) -> CodeType:
    """Code that does nothing and stands where a frame stood."""
    return _BLANK.replace(co_filename=file, co_firstlineno=max(line, 0), co_name=function)


def _form(shape: Iterable[int], dtype: str) -> Tensor:
    """A tensor without values."""
    return torch.empty(tuple(shape), dtype=torch_dtype(dtype), device="meta")


def _conditions(told: FileHistory) -> Conditions:
    each = told.conditions
    known = [msgspec.structs.replace(c, value=decoded_argument(c.value, lambda _: None)) for c in each.conditions]
    return Conditions.known(known, each.ops, each.branches)


def save_history(history: HistoryContents, path: str | PathLike[str], *, overwrite: bool) -> None:
    """Write a history with all its tensors."""
    file = TensorFile(Path(path)).create(overwrite=overwrite)
    try:
        finish_history(history, file)
    except BaseException:
        file.abandon()
        raise


def finish_history(history: HistoryContents, file: TensorFile) -> None:
    """Write what is not yet there, and close the file."""
    file.put_bytes("structure", msgspec.msgpack.encode(_Writer(history, file).told()))
    file.finish()


class _Writer:
    """Turns a history to plain data, and its tensors to datasets."""

    def __init__(self, history: HistoryContents, file: TensorFile) -> None:
        self._history = history
        self._capture = history.capture
        self._file = file
        self._frames: list[FileFrame] = []
        self._frame_numbers: dict[int, int] = {}
        self._parameters: list[FileParameter] = []
        self._parameter_numbers: dict[int, int] = {}
        self._rng: list[dict[str, FileTensor]] = []
        self._rng_numbers: dict[int, int] = {}
        self._calls: list[FileCall] = []
        self._call_numbers: dict[int, int] = {}
        self._others: dict[int, FileTensor] = {}

    def told(self) -> FileHistory:
        history, capture = self._history, self._capture
        for parameter in history.parameters:
            self._parameter(parameter, listed=True)
        modules = {id(call): number for number, call in enumerate(capture.module_calls)}
        return FileHistory(
            format=FORMAT,
            model_name=history.model_name,
            ops=[self._op(op, modules) for op in capture.ops],
            module_calls=[
                FileModuleCall(
                    *(call.address, call.kind, call.number, modules.get(id(call.parent), -1), self._stack(call.stack)),
                    *(dict(call.entered_at), dict(call.exited_at), call.ops, call.started, call.seconds),
                )
                for call in capture.module_calls
            ],
            returns=[modules[id(call)] for call in capture.returns],
            truths=[
                FileTruth(t.op, t.how, encoded_argument(t.value, lambda _: None), self._stack(t.stack), t.at)
                for t in capture.truths
            ],
            gradients={index: self._tensor(f"gradients/{index}", g) for index, g in capture.gradients.items()},
            composites=[(*key, index) for key, index in capture.composites.items()],
            buffer_writes=list(capture.buffer_writes),
            conditions=self._conditions(),
            seed=capture.seed,
            started=capture.started,
            ended=capture.ended,
            seconds=capture.seconds,
            parameters=self._parameters,
            frames=self._frames,
            rng=self._rng,
            calls=self._calls,
        )

    def _op(self, op: CapturedOp, modules: Mapping[int, int]) -> FileOp:
        return FileOp(
            *(op.kind, self._call(op.call), op.parents, op.shape, _name(op.dtype), str(op.device), op.nbytes),
            *(op.requires_grad, op.grad_fn, modules.get(id(op.module), -1), op.path, op.output_index, op.address),
            op.unsaved,
            self._held(f"values/{op.index}", op.held),
            self._held(f"transformed/{op.index}", op.held_transformed),
        )

    def _held(self, name: str, held: Any) -> FileTensor | None:
        if held is None:
            return None
        if name in self._file.names:
            return FileTensor(name, tuple(held.shape), _name(held.dtype))
        return self._tensor(name, held.read() if isinstance(held, LazyTensor) else held)

    def _tensor(self, name: str, value: Tensor) -> FileTensor:
        self._file.put(name, value)
        return FileTensor(name, tuple(value.shape), _name(value.dtype))

    def _call(self, call: CapturedCall) -> int:
        number = self._call_numbers.get(id(call))
        if number is None:
            told = FileCall(
                *(call.func_name, call.layer_type, call.label, call.site),
                encoded_argument(call.args, self._reference),
                encoded_argument(dict(call.kwargs), self._reference),
                [self._parameter(parameter) for parameter in call.parameters],
                self._states(call.rng),
                call.seconds,
                self._stack(call.stack),
                call.inplace,
                [(device, _name(dtype)) for device, dtype in call.autocast],
            )
            number = self._call_numbers[id(call)] = len(self._calls)
            self._calls.append(told)
        return number

    def _reference(self, reference: Any) -> Any:
        if isinstance(reference, Ref):
            return ["ref", reference.op]
        if isinstance(reference, Parameter):
            return ["parameter", self._parameter(reference)]
        told = self._others.get(id(reference))
        if told is None:
            name = f"others/{len(self._others)}"
            if reference.value is not None:
                told = self._tensor(name, reference.value)
            elif isinstance(reference, ConstantTensor):
                told = FileTensor("", reference.shape, _name(reference.dtype))
            else:
                told = FileTensor("", (), "float32")
            self._others[id(reference)] = told
        head = ["stale", reference.op, reference.written_by] if isinstance(reference, Overwritten) else ["constant"]
        return [*head, told]

    def _parameter(self, parameter: Parameter, *, listed: bool = False) -> int:
        tensor = parameter.tensor
        number = self._parameter_numbers.get(id(tensor))
        if number is None:
            number = self._parameter_numbers[id(tensor)] = len(self._parameters)
            shape, dtype = tuple(tensor.shape), _name(tensor.dtype)
            self._parameters.append(FileParameter(parameter.address, shape, dtype, tensor.requires_grad, listed))
        return number

    def _states(self, states: Mapping[str, Tensor]) -> int:
        if not states:
            return -1
        number = self._rng_numbers.get(id(states))
        if number is None:
            number = self._rng_numbers[id(states)] = len(self._rng)
            self._rng.append(
                {device: self._tensor(f"rng/{number}/{k}", s) for k, (device, s) in enumerate(states.items())}
            )
        return number

    def _stack(self, stack: Stack | None) -> int:
        waiting = []
        while stack is not None and id(stack) not in self._frame_numbers:
            waiting.append(stack)
            stack = stack[0]
        for each in reversed(waiting):
            outside = -1 if each[0] is None else self._frame_numbers[id(each[0])]
            self._frame_numbers[id(each)] = len(self._frames)
            self._frames.append(FileFrame(outside, each[1].co_filename, line_of(each[1], each[2]), each[1].co_name))
        last = waiting[0] if waiting else stack
        return -1 if last is None else self._frame_numbers[id(last)]

    def _conditions(self) -> FileConditions:
        known = self._history.conditions
        told = [msgspec.structs.replace(c, value=encoded_argument(c.value, lambda _: None)) for c in known]
        return FileConditions(
            told,
            {name: sorted(getattr(known, name)) for name in ("terminal_bools", "tested", "evaluating", "starts")},
            dict(known.branches),
        )


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


_PLAIN = (bool, float, str, type(None))

_OF_TORCH = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)

Tensors = Callable[[Any], Any]


class OpaqueArgument(msgspec.Struct, frozen=True):
    """An argument that a file can't hold, as it printed."""

    text: str

    def __repr__(self) -> str:
        return self.text


def encoded_argument(value: Any, reference: Tensors) -> Any:
    """A nested argument as plain data; ``reference`` says how a tensor is named."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else ["int", str(value)]
    if kind in (tuple, list) or isinstance(value, tuple):
        return ["list" if kind is list else "tuple", [encoded_argument(item, reference) for item in value]]
    if kind is dict:
        return ["dict", [[encoded_argument(k, reference), encoded_argument(v, reference)] for k, v in value.items()]]
    if kind is slice:
        return ["slice", [encoded_argument(item, reference) for item in (value.start, value.stop, value.step)]]
    if isinstance(value, Ref | Overwritten | Parameter | ConstantTensor):
        return ["tensor", reference(value)]
    return _named(value)


def _named(value: Any) -> Any:
    if value is Ellipsis:
        return ["ellipsis"]
    if isinstance(value, torch.device):
        return ["device", str(value)]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, _OF_TORCH):
        return ["torch", str(value).removeprefix("torch.")]
    return ["opaque", repr(value)[:1000]]


def decoded_argument(data: Any, reference: Tensors) -> Any:
    """What ``encoded`` was given, opaque things apart."""
    if not isinstance(data, list):
        return data
    match data:
        case ["tensor", told]:
            return reference(told)
        case ["list" | "tuple" | "slice" as name, list(items)]:
            found = [decoded_argument(item, reference) for item in items]
            return found if name == "list" else tuple(found) if name == "tuple" else slice(*found)
        case ["dict", list(items)]:
            return {decoded_argument(k, reference): decoded_argument(v, reference) for k, v in items}
    return _unnamed(data)


def _unnamed(data: list[Any]) -> Any:
    match data:
        case ["ellipsis"]:
            return Ellipsis
        case ["int", str(text)]:
            return int(text)
        case ["device", str(text)]:
            return torch.device(text)
        case ["complex", real, imaginary]:
            return complex(real, imaginary)
        case ["torch", str(name)] if isinstance(found := getattr(torch, name, None), _OF_TORCH):
            return found
        case ["opaque", str(text)]:
            return OpaqueArgument(text)
    raise DamagedFileError(f"an argument in the file is none: {str(data)[:100]}")


_NATIVE = frozenset(
    (torch.float64, torch.float32, torch.float16, torch.complex64, torch.complex128, torch.bool)
    + (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
)


class LazyTensor:
    """A tensor in a file, read when it is asked for."""

    __slots__ = ("dtype", "file", "name", "shape")

    def __init__(self, file: TensorFile, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.file = file
        self.name = name
        self.shape = shape
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """The size of the tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        array = self.file.array(self.name)
        try:
            found = torch.from_numpy(np.array(array))
            found = found if self.dtype in _NATIVE else found.view(self.dtype)
        except (TypeError, RuntimeError) as error:
            raise DamagedFileError(f"{self.file.path}: {self.name} is no {self.dtype} tensor: {error}") from error
        if found.dtype != self.dtype:
            raise DamagedFileError(f"{self.file.path}: {self.name} is of {found.dtype}, and should be of {self.dtype}")
        if found.numel() != torch.Size(self.shape).numel():
            raise DamagedFileError(f"{self.file.path}: {self.name} has not the {self.shape} that the file says")
        return found.reshape(self.shape)


class TensorFile:
    """Where tensors are written to and read from by name.

    While it is written its name ends in ``.partial``; ``finish`` gives it its own.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._writing: h5py.File | None = None
        self.names: set[str] = set()

    def create(self, *, overwrite: bool) -> TensorFile:
        """Begin a new file."""
        if self.path.exists() and not overwrite:
            raise RecordingExistsError(f"{self.path} exists; give another path, or overwrite=True")
        try:
            self._writing = h5py.File(self._partial, "w")
        except OSError as error:
            raise RecordingFileError(f"{self.path} can't be written: {error}") from error
        return self

    @property
    def _partial(self) -> Path:
        return self.path.with_name(self.path.name + ".partial")

    def put(self, name: str, value: Tensor) -> LazyTensor:
        """Write a tensor."""
        assert self._writing is not None
        plain = copied(value).cpu().resolve_conj().resolve_neg().contiguous()
        array = plain.numpy() if value.dtype in _NATIVE else plain.reshape(-1).view(torch.uint8).numpy()
        try:
            self._writing.create_dataset(name, data=array)
        except OSError as error:
            raise RecordingFileError(f"{self.path} can't be written: {error}") from error
        self.names.add(name)
        return LazyTensor(self, name, tuple(value.shape), value.dtype)

    def put_bytes(self, name: str, content: bytes) -> None:
        """Write a text."""
        assert self._writing is not None
        self._writing.create_dataset(name, data=np.frombuffer(content, np.uint8))

    def finish(self) -> None:
        """Close the file, and give it its name."""
        assert self._writing is not None
        self._writing.close()
        self._writing = None
        self._partial.replace(self.path)

    def abandon(self) -> None:
        """Give up what was written so far."""
        if self._writing is not None:
            self._writing.close()
            self._writing = None
            self._partial.unlink(missing_ok=True)

    def array(self, name: str) -> Any:
        """The array of a name; only what lies in this very file is read."""
        if self._writing is not None:
            return self._writing[name][()]
        if not self.path.exists():
            raise RecordingNotFoundError(f"there is no file {self.path} any more" if self.names else f"no {self.path}")
        try:
            with h5py.File(self.path, "r") as file:
                return _dataset(file, name)[()]
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:  # whatever HDF5 stumbles over
            raise DamagedFileError(f"{self.path} is no history, or not all of one: {error}") from error


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    group, found = file, None
    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise KeyError(f"{name} does not lie in it")
        found = group = group[part]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise KeyError(f"{name} does not lie in it")
    return found
