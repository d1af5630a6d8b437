"""The structure of a history as it lies in a file, encoded as MessagePack."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from fastrec.graph._conditions import Condition

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
