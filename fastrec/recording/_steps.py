"""The marked steps as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastrec._errors import RecordKeyError, StepError, did_you_mean
from fastrec.recording._arrays import stacked
from fastrec.recording._source import PhaseSteps
from fastrec.recording._view import Integers, Mask, View, metas_of_key
from fastrec.statistics.html import columns_html, curves_html

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
            raise RecordKeyError(f"no step was marked with a column {name!r}; {did_you_mean(name, list(self))}")
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

    def _repr_html_(self) -> str:
        return columns_html(f"{len(self):,} steps", {name: self[name] for name in self})

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


class Episode:
    """One environment from a reset to an end, or to the last step.

    ``start_step`` and ``stop_step`` number steps of ``phase``, the second not included. ``episode[key]`` are the values
    of a key, one per step, of shape [length, *feature]; ``columns`` the step columns of this environment.
    """

    __slots__ = ("_phase", "_rows", "env", "terminated", "truncated")

    def __init__(self, phase: _Phase, env: int, rows: range) -> None:
        self._phase = phase
        self._rows = rows
        self.env = env
        self.terminated = phase.ended(rows[-1], env, ("terminated", "done"))
        self.truncated = phase.ended(rows[-1], env, ("truncated",))

    @property
    def phase(self) -> str:
        """The name of the phase."""
        return self._phase.name

    @property
    def start_step(self) -> int:
        """The number of the first step."""
        return int(self._phase.table.numbers[self._rows[0]])

    @property
    def stop_step(self) -> int:
        """The number after that of the last step."""
        return int(self._phase.table.numbers[self._rows[-1]]) + 1

    @property
    def length(self) -> int:
        """How many steps it has."""
        return len(self._rows)

    @property
    def columns(self) -> Mapping[str, npt.NDArray[Any]]:
        """The step columns of this environment, of shape [length]."""
        rows = slice(self._rows.start, self._rows.stop)
        columns = self._phase.table.columns
        return {n: c[rows, self.env] if c.ndim > 1 else c[rows] for n, c in columns.items() if n != RESET_ONLY}

    def __getitem__(self, key: str) -> Tensor:
        return self._phase.values(key, self._rows, self.env)

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        end = "terminated" if self.terminated else "truncated" if self.truncated else "open"
        phase = f" of {self.phase!r}" if self.phase else ""
        return f"<Episode of env {self.env}: steps {self.start_step} to {self.stop_step - 1}{phase}, {end}>"

    def _repr_html_(self) -> str:
        return curves_html(repr(self)[1:-1], self.columns)


class _Phase:
    """The steps of one phase, and which records fired in them."""

    def __init__(self, view: View, table: PhaseSteps) -> None:
        self.view = view
        self.table = table
        self.name = view.catalog.phases[table.phase]
        done = done_of(table)
        if done is None:
            raise StepError(
                f"episodes need to know when they end, and the steps{self._where()} have no such column; call "
                "rec.step(terminated=..., truncated=...) with one value per environment"
            )
        if (np.diff(table.numbers) != 1).any():
            raise StepError("episodes need every step from first to last; select steps by a range, or not at all")
        for name in DONE:
            missing = np.ma.getmaskarray(table.columns[name]) if name in table.columns else np.zeros(1, np.bool_)
            if missing.any():
                step = table.numbers[np.argwhere(missing)[0][0]]
                raise StepError(f"step {step}{self._where()} was marked without {name!r}; give it every time")
        self.done: npt.NDArray[np.bool_] = done
        only = table.columns.get(RESET_ONLY)
        self.reset_only = np.zeros_like(done) if only is None else only.reshape(done.shape)
        self.per_env = any(table.columns[name].ndim > 1 for name in DONE if name in table.columns)
        self._fired: dict[str, tuple[View, Integers, Integers]] = {}

    def ended(self, row: int, env: int, names: tuple[str, ...]) -> bool:
        """Whether one of these columns says that an environment ended in a row."""
        found = [self.table.columns[name].reshape(len(self.done), -1) for name in names if name in self.table.columns]
        return any(bool(column[row, env]) for column in found)

    def episodes(self) -> Iterator[Episode]:
        """All episodes, environment by environment."""
        # The environments of the next session begin anew, so what is open at the end of one stays open.
        last = np.array(session_edges(self.table)[1:], np.int64) - 1
        for env in range(self.done.shape[1]):
            only = self.reset_only[:, env]
            ends = np.union1d(np.flatnonzero(self.done[:, env]), last).tolist()
            start = 0
            for end in ends:
                start += bool(only[start])
                if start <= end:
                    yield Episode(self, env, range(start, end + 1))
                start = end + 1

    def values(self, key: str, rows: range, env: int) -> Tensor:
        """What a key's records hold for an environment in consecutive steps."""
        if key not in self._fired:
            view = self.view.of_passes(self.view.passes["phase"] == self.table.phase)
            self._fired[key] = firings(view.of_metas(metas_of_key(view, key)), self.table)
        fired, at, count = self._fired[key]
        here = slice(rows.start, rows.stop)
        _check_once(count[here], self.table.numbers[here], key, self._where())
        values = stacked(fired.take(at[here]), key)
        if not self.per_env:
            return values[:, 0] if values.ndim > 1 and values.shape[1] == 1 else values
        envs = self.done.shape[1]
        if values.ndim < 2 or values.shape[1] != envs:
            raise StepError(
                f"{key!r} has values of shape {tuple(values.shape[1:])}, and episodes need one row per environment "
                f"({envs} of them); choose another key, or recording.select(batch={envs})"
            )
        return values[:, env]

    def _where(self) -> str:
        return f" of phase {self.name!r}" if self.name else ""


def firings(view: View, table: PhaseSteps) -> tuple[View, Integers, Integers]:
    """The records of a phase; for each of its steps one of them, and how many there are."""
    view = view.of_passes(view.passes["phase"] == table.phase)
    rows = view.passes["step"][view.pass_at] - table.numbers[0]
    inside = np.flatnonzero((rows >= 0) & (rows < len(table.numbers)))
    count = np.bincount(rows[inside], minlength=len(table.numbers))
    at = np.zeros(len(table.numbers), np.int64)
    at[rows[inside]] = inside
    return view, at, count


def fired_once(view: View, table: PhaseSteps, key: str) -> View:
    """The record of each step; a StepError where a step has none or several."""
    if (np.diff(table.numbers) != 1).any():
        raise StepError("every step is needed from first to last; select steps by a range, or not at all")
    name = view.catalog.phases[table.phase]
    fired, at, count = firings(view, table)
    _check_once(count, table.numbers, key, f" of phase {name!r}" if name else "")
    return fired.take(at)


def _check_once(count: Integers, numbers: Integers, key: str, where: str) -> None:
    if (count != 1).any():
        row = int(np.argmax(count != 1))
        raise StepError(
            f"{key!r} fired {count[row]} times in step {numbers[row]}{where}, and one firing per step is needed; "
            "leave other passes out with recording.select(entry=, batch=, grad=, phase=)"
        )


def episodes_of(view: View, steps: Steps) -> list[Episode]:
    """All episodes of the steps, in order of their start."""
    if not steps:
        raise StepError(
            "episodes are made of steps, and none was marked; call rec.step(terminated=..., truncated=...) after "
            "env.step"
        )
    found = [episode for table in steps.tables for episode in _Phase(view, table).episodes()]
    return sorted(found, key=lambda episode: (episode._phase.table.phase, episode.start_step, episode.env))
