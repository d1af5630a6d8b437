"""Writing a history to a file."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from torch import Tensor

from fastrec.graph._file_format import (
    FORMAT,
    FileCall,
    FileConditions,
    FileFrame,
    FileHistory,
    FileModuleCall,
    FileOp,
    FileParameter,
    FileTensor,
    FileTruth,
)
from fastrec.graph._file_values import encoded
from fastrec.graph._raw import Call, Constant, Op, Parameter, Ref, Stack, Stale
from fastrec.graph._stacks import line_of
from fastrec.graph._stored import Stored, TensorFile

if TYPE_CHECKING:
    from fastrec.graph._history import ModelHistory


def save_history(history: ModelHistory, path: str | PathLike[str], *, overwrite: bool) -> None:
    """Write a history with all its tensors."""
    file = TensorFile(Path(path)).create(overwrite=overwrite)
    try:
        finish_history(history, file)
    except BaseException:
        file.abandon()
        raise


def finish_history(history: ModelHistory, file: TensorFile) -> None:
    """Write what is not yet there, and close the file."""
    file.put_bytes("structure", msgspec.msgpack.encode(_Writer(history, file).told()))
    file.finish()


class _Writer:
    """Turns a history to plain data, and its tensors to datasets."""

    def __init__(self, history: ModelHistory, file: TensorFile) -> None:
        self._history = history
        self._capture = history.graph.capture
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
        for parameter in history._parameters:
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
                FileTruth(t.op, t.how, encoded(t.value, lambda _: None), self._stack(t.stack), t.at)
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

    def _op(self, op: Op, modules: Mapping[int, int]) -> FileOp:
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
        return self._tensor(name, held.read() if isinstance(held, Stored) else held)

    def _tensor(self, name: str, value: Tensor) -> FileTensor:
        self._file.put(name, value)
        return FileTensor(name, tuple(value.shape), _name(value.dtype))

    def _call(self, call: Call) -> int:
        number = self._call_numbers.get(id(call))
        if number is None:
            told = FileCall(
                *(call.func_name, call.layer_type, call.label, call.site),
                encoded(call.args, self._reference),
                encoded(dict(call.kwargs), self._reference),
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
            elif isinstance(reference, Constant):
                told = FileTensor("", reference.shape, _name(reference.dtype))
            else:
                told = FileTensor("", (), "float32")
            self._others[id(reference)] = told
        head = ["stale", reference.op, reference.written_by] if isinstance(reference, Stale) else ["constant"]
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
        told = [msgspec.structs.replace(c, value=encoded(c.value, lambda _: None)) for c in known]
        return FileConditions(
            told,
            {name: sorted(getattr(known, name)) for name in ("terminal_bools", "tested", "evaluating", "starts")},
            dict(known.branches),
        )


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
