"""Reading a history from a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from types import CodeType
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from fastrec._errors import DamagedFileError, FastrecError, RecordingNotFoundError, SessionError
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import torch_dtype
from fastrec.graph._conditions import Conditions
from fastrec.graph._file_format import FORMAT, FileHistory, FileOp, FileTensor
from fastrec.graph._file_values import decoded
from fastrec.graph._history import ModelHistory
from fastrec.graph._pass import Keeping
from fastrec.graph._raw import Call, Capture, Constant, ModuleCall, Op, Parameter, Ref, Stack, Stale, Truth
from fastrec.graph._saving import All
from fastrec.graph._stored import Stored, TensorFile


def load_history(path: str | PathLike[str]) -> ModelHistory:
    """Read a history that ``ModelHistory.save`` or ``save_activations_to`` wrote; tensors are read when asked for.

    >>> import tempfile, torch
    >>> from fastrec.graph import load_history, log_forward_pass
    >>> path = tempfile.mkdtemp() + "/pass.h5"
    >>> log_forward_pass(torch.nn.ReLU(), torch.ones(2)).save(path)
    >>> load_history(path)["relu_1"].activation
    tensor([1., 1.])

    Nothing that is in the file is run. The model is not in it, so there are no functions (``func_applied`` is None),
    parameters have no values, and the pass can't be run again. Values are read anew each time, until
    ``materialize_activation`` takes one into memory.

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
        return _Reader(told, file).history()
    except FastrecError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DamagedFileError(f"{path} does not hold together: {error}") from error


class SavedHistory(ModelHistory):
    """A history without its model."""

    def __init__(self, capture: Capture, told: FileHistory, parameters: Sequence[Parameter]) -> None:
        super().__init__(capture, {}, Keeping(All(), CaptureSpec()))
        self._told = told
        listed = [p for p, each in zip(parameters, told.parameters, strict=True) if each.listed]
        vars(self).update(_parameters=listed, conditions=_conditions(told))

    @property
    def model_name(self) -> str:
        """The name of the model's class."""
        return self._told.model_name

    def save_new_activations(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the model is not in the file."""
        raise SessionError(
            "this history was read from a file, which does not hold the model; log the pass again with log_forward_pass"
        )


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

    def history(self) -> ModelHistory:
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
            Truth(t.op, t.how, decoded(t.value, lambda _: None), self._stack(t.stack), t.at) for t in told.truths
        ]
        capture.gradients = {index: self._read(each) for index, each in told.gradients.items()}
        capture.composites = {(label, site, path): index for label, site, path, index in told.composites}
        capture.buffer_writes = list(told.buffer_writes)
        capture.seed, capture.started = told.seed, told.started
        capture.ended, capture.seconds = told.ended, told.seconds
        self._check(capture)
        return SavedHistory(capture, told, self._parameters)

    def _check(self, capture: Capture) -> None:
        """Operations come after their parents, as all that reads a graph relies on."""
        for op in capture.ops:
            if any(not 0 <= parent < op.index for parent in op.parents):
                raise ValueError(f"operation {op.index} has parents that do not come before it")

    def _call(self, number: int) -> Call:
        each = self._told.calls[number]
        call = Call(None, each.func_name, each.layer_type, each.label, each.site)
        call.args = decoded(each.args, self._reference)
        call.kwargs = decoded(each.kwargs, self._reference)
        call.parameters = tuple(self._parameters[n] for n in each.parameters)
        call.rng = self._rng[each.rng] if each.rng >= 0 else {}
        call.seconds, call.stack, call.inplace = each.seconds, self._stack(each.stack), each.inplace
        call.autocast = tuple((device, torch_dtype(dtype)) for device, dtype in each.autocast)
        if (type(call.args), type(call.kwargs)) != (tuple, dict):
            raise ValueError(f"call {number} has no arguments")
        return call

    def _op(self, index: int, each: FileOp, calls: Sequence[Call], capture: Capture) -> Op:
        op = Op(
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
                return Stale(op, tuple(writers), self._optional(each))
            case ["constant", each]:
                tensor = msgspec.convert(each, FileTensor)
                return Constant(tensor.shape, torch_dtype(tensor.dtype), self._optional(each))
        raise DamagedFileError(f"an argument in the file is no tensor: {str(told)[:100]}")

    def _optional(self, told: Any) -> Tensor | None:
        tensor = msgspec.convert(told, FileTensor)
        return self._read(tensor) if tensor.name else None

    def _stored(self, told: FileTensor | None) -> Stored | None:
        return None if told is None else Stored(self._file, told.name, told.shape, torch_dtype(told.dtype))

    def _read(self, told: FileTensor) -> Tensor:
        return Stored(self._file, told.name, told.shape, torch_dtype(told.dtype)).read()

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
    known = [msgspec.structs.replace(c, value=decoded(c.value, lambda _: None)) for c in each.conditions]
    return Conditions.known(known, each.ops, each.branches)
