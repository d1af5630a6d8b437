"""Episodes: the steps of one environment from its start to its end, with what was kept in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastrec._contracts import PhaseSteps
from fastrec._errors import StepError
from fastrec._recording_keys import kinds_of
from fastrec._recording_stack import stacked
from fastrec._recording_steps import DONE, RESET_ONLY, Steps, done_of, session_edges
from fastrec._recording_view import Integers, View


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
            self._fired[key] = firings(view.of_kinds(kinds_of(view, key)), self.table)
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
