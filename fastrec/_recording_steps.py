"""The marked steps as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fastrec._contracts import PhaseSteps
from fastrec._errors import RecordKeyError, StepError, near
from fastrec._recording_view import Integers, Mask

Array = npt.NDArray[Any]
DONE = ("terminated", "truncated", "done")
RESET_ONLY = "reset_only"


class Steps:
    """The steps that were marked by ``rec.step(**columns)``: one row each, in order of their marks.

    ``phase`` and ``step`` tell which step a row is; ``steps["reward"]`` is a column, of shape [steps] or
    [steps, envs], and a masked array where some step was marked without it. With ``autoreset="next_step"`` the column
    ``reset_only`` marks the rows in which an environment, having ended before, was only reset.
    """

    def __init__(self, tables: Sequence[PhaseSteps], names: Sequence[str]) -> None:
        self.tables = tables
        self._names = names
        together = np.concatenate([table.order for table in tables]) if tables else np.empty(0, np.int64)
        self._order = np.argsort(together)

    @property
    def phase(self) -> npt.NDArray[np.object_]:
        """The name of the phase of each step."""
        names = [np.full(len(t.numbers), self._names[t.phase], dtype=object) for t in self.tables]
        return np.concatenate(names)[self._order] if names else np.empty(0, dtype=object)

    @property
    def step(self) -> Integers:
        """The number of each step in its phase."""
        numbers = [table.numbers for table in self.tables]
        return np.concatenate(numbers)[self._order] if numbers else np.empty(0, np.int64)

    @property
    def columns(self) -> dict[str, Array]:
        """All columns by name."""
        return {name: self[name] for name in self}

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for table in self.tables for name in table.columns))

    def __getitem__(self, name: str) -> Array:
        having = [table.columns[name] for table in self.tables if name in table.columns]
        if not having:
            raise RecordKeyError(f"no step was marked with a column {name!r}; {near(name, list(self))}")
        if len({column.shape[1:] for column in having}) > 1:
            told = " and ".join(
                f"{table.columns[name].shape[1:]} in {self._names[table.phase]!r}"
                for table in self.tables
                if name in table.columns
            )
            raise StepError(f"the column {name!r} has other shapes in other phases: {told}; select(phase=...) first")
        parts = [table.columns.get(name, _absent(len(table.numbers), having[0])) for table in self.tables]
        masked = any(isinstance(part, np.ma.MaskedArray) for part in parts)
        joined: Array = (np.ma.concatenate if masked else np.concatenate)(parts)[self._order]
        return joined

    def __repr__(self) -> str:
        return f"<{len(self)} steps: {', '.join(self) or 'no columns'}>"

    def restrict(self, phase: int, mask: Mask) -> Steps:
        """Without the steps of one phase that a mask leaves out."""
        tables = [_masked(t, mask) if t.phase == phase else t for t in self.tables]
        return Steps([table for table in tables if len(table.numbers)], self._names)


def steps_of(tables: Sequence[PhaseSteps], names: Sequence[str], autoreset: str | None) -> Steps:
    """All steps of a source, with the rows marked in which environments were only reset."""
    if autoreset == "next_step":
        tables = [_with_reset_only(table) for table in tables]
    return Steps(tables, names)


def session_edges(table: PhaseSteps) -> list[int]:
    """Rows between which the steps are of one session, the first and the end included."""
    starts = np.searchsorted(table.numbers, np.array(table.starts, np.int64))
    return sorted({0, *starts.tolist(), len(table.numbers)})


def done_of(table: PhaseSteps) -> Array | None:
    """Whether each environment ended in each step, of shape [steps, envs]; None where no column tells."""
    columns = [table.columns[name] for name in DONE if name in table.columns]
    if not columns:
        return None
    flags = [np.ma.filled(column.astype(bool), False).reshape(len(column), -1) for column in columns]
    if len({flag.shape for flag in flags}) > 1:
        told = " and ".join(f"{n} {table.columns[n].shape[1:]}" for n in DONE if n in table.columns)
        raise StepError(f"the columns that say when an episode ends differ in shape: {told}; give one value per env")
    done: Array = np.logical_or.reduce(flags)
    return done


def _with_reset_only(table: PhaseSteps) -> PhaseSteps:
    done = done_of(table)
    if done is None or RESET_ONLY in table.columns:
        return table
    before = [table.before[name].astype(bool).reshape(-1) for name in DONE if name in table.before]
    fresh = np.zeros(done.shape[1], np.bool_)
    previous = np.logical_or.reduce(before) if before else fresh
    edges = session_edges(table)
    parts = []
    for start, stop in zip(edges, edges[1:], strict=False):
        # A session begins with a reset of its own, which is no row.
        previous = fresh if int(table.numbers[start]) in table.starts else previous
        parts.append(_reset_only(done[start:stop], previous))
    reset_only = np.concatenate([np.zeros((0, done.shape[1]), np.bool_), *parts])
    shape = next(table.columns[name].shape for name in DONE if name in table.columns)
    return msgspec.structs.replace(table, columns={**table.columns, RESET_ONLY: reset_only.reshape(shape)})


def _reset_only(done: Array, previous: Array) -> Array:
    """In which rows of a session environments were only reset, given which of them ended in the row before."""
    reset_only = np.zeros_like(done)
    # A row that only resets has no end of its own, whatever its columns say.
    if (done[:-1] & done[1:]).any() or (done[:1] & previous).any():
        for row in range(len(done)):
            reset_only[row] = previous
            previous = done[row] & ~previous
    else:
        reset_only[1:], reset_only[:1] = done[:-1], previous
    return reset_only


def _masked(table: PhaseSteps, mask: Mask) -> PhaseSteps:
    return msgspec.structs.replace(
        table,
        numbers=table.numbers[mask],
        order=table.order[mask],
        columns={name: column[mask] for name, column in table.columns.items()},
    )


def _absent(rows: int, like: Array) -> Array:
    data = np.zeros((rows, *like.shape[1:]), like.dtype)
    if like.dtype.kind == "f":
        data[:] = np.nan
    absent: Array = np.ma.MaskedArray(data, np.True_)
    return absent
