"""What stands beside the rows of a key: step columns, sample ids, and the numbers of steps, environments and episodes.

    rows = recording.rows("torso", by="sample")
    rows.step, rows.env                # one number per row, -1 where there is none
    rows.column("reward")              # a step column, one value per row

A row finds its step by the number that its pass has, and its place in the step by where it lies in its record.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrec._errors import RecordKeyError, StepError, did_you_mean
from fastrec._torch.tensors import outside_torch_modes
from fastrec.events.sites import SampleId
from fastrec.recording._source import Array, Integers, PhaseSteps
from fastrec.recording._steps import Firings, Steps, episodes_of, n_environments
from fastrec.recording._view import View, rank_of_passes

NUMBERS = ("row", "pass_index", "step", "env", "episode", "rank")
"""The labels that are whole numbers, -1 where a row has none."""


LABELS = (*NUMBERS, "sample_id")


class RowLabels:
    """The labels of the rows of a key.

    Arguments:
        view: the records of the key.
        sizes: how many rows each record has, where its first dimension counts them; None: a record is a row.
        steps: the marked steps.
    """

    def __init__(self, view: View, sizes: Integers | None, steps: Steps) -> None:
        self._view = view
        self._steps = steps
        self._counts_samples = sizes is not None
        self._sizes = np.ones(len(view), np.int64) if sizes is None else sizes
        self._records = np.repeat(np.arange(len(self._sizes)), self._sizes)  # the record that each row lies in

    @cached_property
    def _offsets(self) -> Integers:
        """The place of each row in its record."""
        offsets: Integers = np.arange(len(self._records)) - (np.cumsum(self._sizes) - self._sizes)[self._records]
        return offsets

    @property
    def row(self) -> Integers:
        """The numbers of the rows."""
        return np.arange(len(self._records))

    @property
    def pass_index(self) -> Integers:
        """The pass of each row."""
        return self._of_passes(self._view.passes["pass_index"])

    @cached_property
    def step(self) -> Integers:
        """The step of each row, within its phase."""
        steps = self._view.passes["step"]
        has_steps = np.isin(self._view.passes["phase"], sorted(self._view.phases_with_steps))
        return self._of_passes(np.where((steps > 0) | ((steps == 0) & has_steps), steps, -1))

    @property
    def phase(self) -> Array:
        """The name of the phase of each row."""
        names = np.array(self._view.catalog.phases.items, dtype=object)
        phases: Array = names[self._of_passes(self._view.passes["phase"])]
        return phases

    @property
    def rank(self) -> Integers:
        """The rank of the process of each row, -1 where it is not known or only one process recorded."""
        ranks = rank_of_passes(self._view)
        return np.full(len(self._records), -1, np.int64) if ranks is None else self._of_passes(ranks)

    @cached_property
    def env(self) -> Integers:
        """The environment of each row; 0 where the steps have one environment without an axis."""
        env = np.full(len(self._records), -1, np.int64)
        for table, rows, _ in self._by_table():
            count = n_environments(table)
            if count == 0:
                env[rows] = 0
            elif self._counts_samples:
                fits = self._sizes[self._records[rows]] == count
                env[rows[fits]] = self._offsets[rows[fits]]
        return env

    @cached_property
    def episode(self) -> Integers:
        """The number of the episode of each row in ``recording.episodes()``."""
        numbers = np.full(len(self._records), -1, np.int64)
        episodes = episodes_of(self._view, self._steps, Firings())
        phases = self._view.catalog.phases
        for table, rows, _ in self._by_table():
            of_step = np.full((len(table.numbers), max(1, n_environments(table))), -1, np.int64)
            for number, episode in enumerate(episodes):
                if episode.phase == phases[table.phase]:
                    first, last = np.searchsorted(table.numbers, [episode.start_step, episode.stop_step])
                    of_step[first:last, episode.env] = number
            env = self.env[rows]
            known = of_step[np.searchsorted(table.numbers, self.step[rows]), np.maximum(env, 0)]
            numbers[rows] = np.where(env >= 0, known, -1)
        return numbers

    @cached_property
    def sample_id(self) -> list[SampleId | None]:
        """The sample id of each row: that of its pass, or its own where the pass has one for each sample."""
        indices = self.pass_index.tolist()
        ids = {index: self._view.source.sample_id(index) for index in dict.fromkeys(indices)}
        if not self._counts_samples or not any(isinstance(sample_id, tuple) for sample_id in ids.values()):
            return [ids[index] for index in indices]
        for index, size in zip(self.pass_index[self._offsets == 0].tolist(), self._sizes[self._sizes > 0], strict=True):
            of_pass = ids[index]
            if isinstance(of_pass, tuple) and len(of_pass) != size:
                raise StepError(
                    f"pass {index} has {len(of_pass)} sample ids, and a value of it has {size} rows; they don't stand "
                    "side by side: leave by='sample' out, or read pass_index in place of sample_id"
                )
        offsets = self._offsets.tolist()
        return [
            of_pass[offset] if isinstance(of_pass := ids[index], tuple) else of_pass
            for index, offset in zip(indices, offsets, strict=True)
        ]

    def tensor(self, name: str) -> tuple[Tensor, list[Any] | None]:
        """A label as a tensor; sample ids as whole numbers, with what these stand for."""
        if name == "sample_id":
            ids = self.sample_id
            distinct = list(dict.fromkeys(ids))
            codes = {sample_id: code for code, sample_id in enumerate(distinct)}
            return torch.tensor([codes[sample_id] for sample_id in ids], dtype=torch.long), distinct
        if name in list(self._steps):
            return _tensor(self.column(name)), None
        if name in NUMBERS:
            return _tensor(getattr(self, name)), None
        raise RecordKeyError(f"there is no label {name!r}; {did_you_mean(name, (*LABELS, *self._steps))}")

    def column(self, name: str) -> Array:
        """A step column with one value per row; StepError where a row has none and can't be NaN."""
        parts: list[tuple[Integers, Array]] = []
        for table, rows, marks in self._by_table():
            if name in table.columns:
                parts.append((rows, self._of_rows(name, table.columns[name], rows, marks)))
        if not parts:
            raise StepError(f"no step of these rows was marked with {name!r}")
        shapes = {part.shape[1:] for _, part in parts}
        if len(shapes) > 1:
            raise StepError(f"the column {name!r} has other shapes in other phases: {shapes}; select(phase=...) first")
        dtype = np.result_type(*(part.dtype for _, part in parts))
        n_given = sum(int((~np.ma.getmaskarray(part)).reshape(len(part), -1).all(1).sum()) for _, part in parts)
        if n_given < len(self._records) and dtype.kind != "f":
            raise StepError(
                f"{len(self._records) - n_given} of {len(self._records)} rows have no {name!r}, because they are of no "
                "step that was marked with it; select the steps that have it: recording.select(steps=...)"
            )
        column: Array = np.full((len(self._records), *shapes.pop()), np.nan if dtype.kind == "f" else 0, dtype)
        for rows, part in parts:
            column[rows] = part.filled(np.nan) if isinstance(part, np.ma.MaskedArray) and dtype.kind == "f" else part
        return column

    def _of_rows(self, name: str, column: Array, rows: Integers, marks: Integers) -> Array:
        """The values of a column for some rows, given the place of their steps in it."""
        if not self._counts_samples or column.ndim == 1:
            part: Array = column[marks]
            return part
        sizes = self._sizes[self._records[rows]]
        wrong = sizes != column.shape[1]
        if wrong.any():
            raise StepError(
                f"the column {name!r} has {column.shape[1]} values in each step, and a value of step "
                f"{self.step[rows[wrong]][0]} has {sizes[wrong][0]} samples; they don't stand side by side: leave "
                f"other passes out with recording.select(batch={column.shape[1]})"
            )
        of_samples: Array = column[marks, self._offsets[rows]]
        return of_samples

    def _by_table(self) -> Iterator[tuple[PhaseSteps, Integers, Integers]]:
        """The steps of each phase, the rows that are of one of them, and the place of each row's step among them."""
        phases = self._of_passes(self._view.passes["phase"])
        for table in self._steps.tables:
            rows = np.flatnonzero((phases == table.phase) & np.isin(self.step, table.numbers))
            yield table, rows, np.searchsorted(table.numbers, self.step[rows])

    def _of_passes(self, values: Array) -> Integers:
        """One value per pass as one value per row."""
        numbers: Integers = values[self._view.pass_positions][self._records]
        return numbers


def _tensor(values: Any) -> Tensor:
    with outside_torch_modes():
        return torch.from_numpy(np.ascontiguousarray(values))
