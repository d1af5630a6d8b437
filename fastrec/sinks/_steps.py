"""The marked steps of a session, growing: one table per phase, with columns that may come late or be left out.

steps = StepTable()
steps.mark(phase, step, step_columns({"reward": 1.0, "terminated": False}))
steps.read()  # a PhaseSteps for each phase
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastrec._errors import StepError
from fastrec.recording._source import Array, PhaseSteps
from fastrec.recording._steps import AXIS_COLUMNS


def step_columns(columns: Mapping[str, Any]) -> dict[str, Array]:
    """The columns of a step as arrays of numbers; a StepError where they are none, or disagree on the environments.

    ``terminated`` and ``truncated`` say how many environments there are, or else ``reward``: one value each, and a
    single value means one environment, without an axis. Any other column is a single number, or has the same first axis
    where there is one; what comes after that axis is the column's own shape.
    """
    arrays = {name: _numbers(name, value) for name, value in columns.items()}
    axis = next((name for name in AXIS_COLUMNS if name in arrays), None)
    if axis is None:
        return arrays
    environments = arrays[axis].shape
    for name in AXIS_COLUMNS:
        # With the ends of episodes given, a reward may be a vector of its own.
        says_ends = name in arrays and name != "reward"
        if (says_ends and arrays[name].shape != environments) or (name == axis and len(environments) > 1):
            raise StepError(
                f"step({name}={columns[name]!r}) has shape {arrays[name].shape} beside {axis} of shape {environments}; "
                "give each of them one value, or one per environment"
            )
    for name, numbers in arrays.items():
        if numbers.ndim and numbers.shape[: len(environments)] != environments:
            raise StepError(
                f"step({name}=...) has shape {numbers.shape}, and {axis} says that there are {environments[0]} "
                f"environments; give an array of shape ({environments[0]}, ...), with one row per environment, or a "
                "single number"
            )
    return arrays


def _numbers(name: str, value: Any) -> Array:
    try:
        numbers = np.array(_on_host(value) if isinstance(value, torch.Tensor) else value)
    except ValueError:  # rows of several lengths
        numbers = np.array(None)
    if numbers.dtype.kind not in "biuf":
        raise StepError(f"step({name}={value!r}): give a number, a bool, or an array of them")
    return numbers


def _on_host(value: torch.Tensor) -> Array:
    """A tensor's numbers; bfloat16, which numpy lacks, as float32."""
    value = value.detach().cpu()
    array: Array = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    return array


class StepTable:
    """All marks of a session by phase, each with its columns."""

    def __init__(self) -> None:
        self._phases: dict[int, _PhaseTable] = {}
        self._n_marks = 0

    def mark(self, phase: int, step: int, columns: Mapping[str, Array]) -> None:
        """Add a mark; a column whose shape changed within its phase is a StepError."""
        table = self._phases.get(phase)
        if table is None:
            table = self._phases[phase] = _PhaseTable()
        table.add(step, self._n_marks, columns)
        self._n_marks += 1

    def counts(self) -> dict[int, int]:
        """How many marks each phase has had, including those that were dropped."""
        return {phase: table.count for phase, table in self._phases.items()}

    def read(self) -> list[PhaseSteps]:
        """A copy of all marks that were not dropped."""
        return [table.read(phase) for phase, table in self._phases.items() if table.numbers]

    def keep_last(self, count: int) -> None:
        """Drop all but the last marks of each phase."""
        for table in self._phases.values():
            table.drop(len(table.numbers) - count)


class _PhaseTable:
    def __init__(self) -> None:
        self.count = 0
        self.numbers = array("q")
        self._order = array("q")
        self._columns: dict[str, _Column] = {}
        self._columns_before: dict[str, Array] = {}

    def add(self, step: int, order: int, columns: Mapping[str, Array]) -> None:
        for name, value in columns.items():
            column = self._columns.get(name)
            if column is not None and column.data.shape[1:] != value.shape:
                raise StepError(
                    f"the step column {name!r} has shape {value.shape} now and had {column.data.shape[1:]} before; "
                    "give it one shape within a phase. A last, smaller batch is left out by drop_last=True in the "
                    "DataLoader, or kept under a name of its own: with rec.phase('last batch')"
                )
        row = len(self.numbers)
        for name, value in columns.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = _Column(value)
            column.put(row, value)
        self.numbers.append(step)
        self._order.append(order)
        self.count = step + 1

    def read(self, phase: int) -> PhaseSteps:
        rows = len(self.numbers)
        return PhaseSteps(
            phase,
            np.array(self.numbers, dtype=np.int64),
            np.array(self._order, dtype=np.int64),
            {name: column.read(rows) for name, column in self._columns.items() if column.is_given[:rows].any()},
            dict(self._columns_before),
        )

    def drop(self, rows: int) -> None:
        """Drop the first rows, and remember the last of them."""
        if rows <= 0:
            return
        self._columns_before = {
            name: column.data[rows - 1].copy() for name, column in self._columns.items() if column.has(rows - 1)
        }
        n_left = len(self.numbers) - rows
        del self.numbers[:rows], self._order[:rows]
        for column in self._columns.values():
            column.drop(rows, n_left)


class _Column:
    """One growing array, and which of its rows were given."""

    def __init__(self, like: Array) -> None:
        self.data: Array = np.zeros((8, *like.shape), like.dtype)
        self.is_given: npt.NDArray[np.bool_] = np.zeros(8, np.bool_)

    def put(self, row: int, value: Array) -> None:
        if value.dtype != self.data.dtype:
            self.data = self.data.astype(np.result_type(self.data.dtype, value.dtype), copy=False)
        if row >= len(self.data):
            self._resize(2 * row)
        self.data[row] = value
        self.is_given[row] = True

    def has(self, row: int) -> bool:
        return row < len(self.is_given) and bool(self.is_given[row])

    def read(self, rows: int) -> Array:
        if rows > len(self.data):
            self._resize(rows)
        data: Array = self.data[:rows].copy()
        is_missing = ~self.is_given[:rows]
        if not is_missing.any():
            return data
        mask = np.broadcast_to(is_missing.reshape(-1, *[1] * (data.ndim - 1)), data.shape)
        if data.dtype.kind == "f":
            data[is_missing] = np.nan
        column: Array = np.ma.MaskedArray(data, mask)
        return column

    def drop(self, rows: int, n_left: int) -> None:
        self._replace(max(8, 2 * n_left), self.data[rows : rows + n_left], self.is_given[rows : rows + n_left])

    def _resize(self, rows: int) -> None:
        self._replace(rows, self.data, self.is_given)

    def _replace(self, rows: int, data: Array, is_given: npt.NDArray[np.bool_]) -> None:
        """New memory of so many rows, of which the first are copied."""
        self.data = np.zeros((rows, *data.shape[1:]), data.dtype)
        self.is_given = np.zeros(rows, np.bool_)
        self.data[: len(data)], self.is_given[: len(is_given)] = data, is_given
