"""The marked steps of a session, growing."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastrec._errors import StepError
from fastrec.recording._source import PhaseSteps

Array = npt.NDArray[Any]


class StepTable:
    """Marks by phase, each with its columns; a column may come late, or be left out of some marks."""

    def __init__(self) -> None:
        self._phases: dict[int, _PhaseTable] = {}
        self._marks = 0

    def mark(self, phase: int, step: int, columns: Mapping[str, Array]) -> None:
        """Add a mark; a column whose shape changed within its phase is a StepError."""
        table = self._phases.get(phase)
        if table is None:
            table = self._phases[phase] = _PhaseTable()
        table.add(step, self._marks, columns)
        self._marks += 1

    def marked(self) -> dict[int, int]:
        """How many marks each phase has had, those that were dropped included."""
        return {phase: table.marked for phase, table in self._phases.items()}

    def read(self) -> list[PhaseSteps]:
        """A copy of all marks that are still here."""
        return [table.read(phase) for phase, table in self._phases.items() if table.numbers]

    def drop(self, most: int = 0) -> None:
        """Forget all but the last marks of each phase."""
        for table in self._phases.values():
            table.drop(len(table.numbers) - most)


class _PhaseTable:
    def __init__(self) -> None:
        self.marked = 0
        self.numbers = array("q")
        self._order = array("q")
        self._columns: dict[str, _Column] = {}
        self._before: dict[str, Array] = {}

    def add(self, step: int, order: int, columns: Mapping[str, Array]) -> None:
        for name, value in columns.items():
            column = self._columns.get(name)
            if column is not None and column.data.shape[1:] != value.shape:
                raise StepError(
                    f"the step column {name!r} has shape {value.shape} now and had {column.data.shape[1:]} before; "
                    "give it one shape within a phase, and name other stretches of the run with rec.phase(...)"
                )
        row = len(self.numbers)
        for name, value in columns.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = _Column(value)
            column.put(row, value)
        self.numbers.append(step)
        self._order.append(order)
        self.marked = step + 1

    def read(self, phase: int) -> PhaseSteps:
        rows = len(self.numbers)
        return PhaseSteps(
            phase,
            np.array(self.numbers, dtype=np.int64),
            np.array(self._order, dtype=np.int64),
            {name: column.read(rows) for name, column in self._columns.items() if column.present[:rows].any()},
            dict(self._before),
        )

    def drop(self, rows: int) -> None:
        if rows <= 0:
            return
        self._before = {n: c.data[rows - 1].copy() for n, c in self._columns.items() if c.has(rows - 1)}
        left = len(self.numbers) - rows
        del self.numbers[:rows], self._order[:rows]
        for column in self._columns.values():
            column.drop(rows, left)


class _Column:
    """One growing array, and which of its rows were given."""

    def __init__(self, like: Array) -> None:
        self.data: Array = np.zeros((8, *like.shape), like.dtype)
        self.present: npt.NDArray[np.bool_] = np.zeros(8, np.bool_)

    def put(self, row: int, value: Array) -> None:
        if value.dtype != self.data.dtype:
            self.data = self.data.astype(np.result_type(self.data.dtype, value.dtype), copy=False)
        if row >= len(self.data):
            self._resize(2 * row)
        self.data[row] = value
        self.present[row] = True

    def has(self, row: int) -> bool:
        return row < len(self.present) and bool(self.present[row])

    def read(self, rows: int) -> Array:
        if rows > len(self.data):
            self._resize(rows)
        data: Array = self.data[:rows].copy()
        missing = ~self.present[:rows]
        if not missing.any():
            return data
        mask = np.broadcast_to(missing.reshape(-1, *[1] * (data.ndim - 1)), data.shape)
        if data.dtype.kind == "f":
            data[missing] = np.nan
        masked: Array = np.ma.MaskedArray(data, mask)
        return masked

    def drop(self, rows: int, left: int) -> None:
        data, present = self.data[rows : rows + left].copy(), self.present[rows : rows + left].copy()
        self.data = np.zeros((max(8, 2 * left), *data.shape[1:]), data.dtype)
        self.present = np.zeros(len(self.data), np.bool_)
        self.data[: len(data)], self.present[: len(present)] = data, present

    def _resize(self, rows: int) -> None:
        data, present = self.data, self.present
        self.data = np.zeros((rows, *data.shape[1:]), data.dtype)
        self.present = np.zeros(rows, np.bool_)
        self.data[: len(data)], self.present[: len(present)] = data, present


def step_columns(columns: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Scalars and per-environment values as numpy arrays of numbers; anything else is a StepError."""
    found = {}
    for name, value in columns.items():
        array = np.array(_on_host(value) if isinstance(value, torch.Tensor) else value)
        if array.dtype.kind not in "biuf" or array.ndim > 1:
            raise StepError(f"step({name}={value!r}): give a number, a bool, or an array with one per environment")
        found[name] = array
    return found


def _on_host(value: torch.Tensor) -> npt.NDArray[Any]:
    """A tensor's numbers; bfloat16, which numpy lacks, as float32."""
    value = value.detach().cpu()
    array: npt.NDArray[Any] = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    return array
