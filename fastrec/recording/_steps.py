"""The marked steps as a table, and the episodes that their columns make of them.

``Steps`` is ``recording.steps``, and an ``Episode`` is an element of ``recording.episodes()``. The marks come from the
source as one ``PhaseSteps`` per phase; what a step has of a key is found by the step number of each record's pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec._errors import OptionError, RecordKeyError, StepError, did_you_mean
from fastrec._torch.tensors import outside_torch_modes
from fastrec.events.process import Process
from fastrec.events.sites import Catalog
from fastrec.recording._arrays import stack_records
from fastrec.recording._source import Array, Integers, Part, PhaseSteps
from fastrec.recording._view import Mask, View, metas_of_key
from fastrec.report.html import columns_html, curves_html

END_COLUMNS = ("terminated", "truncated", "done")
"""The columns that say when an episode ends; ``done`` is either of the other two, as older Gym had it."""

AXIS_COLUMNS = (*END_COLUMNS, "reward")
"""The columns that say how many environments there are: the first of them that is there."""

RESET_ONLY = "reset_only"

Autoreset = Literal["next_step", "same_step"]

AUTORESET_WORDS = (
    "autoreset='next_step' where the step after an end only resets (Gymnasium's vector environments), or "
    "autoreset='same_step' where it is the first of the next episode (Stable-Baselines3, TorchRL, a loop that resets "
    "by itself)"
)
"""The two ways in which vectorised environments reset, for messages."""


class Steps:
    """The steps that were marked by ``rec.step(**columns)``: one row each, in order of their marks.

    ``phase``, ``step`` and ``rank`` tell which step a row is; ``steps["reward"]`` is a column, of shape [steps,
    *shape] or [steps, envs, *shape], and a masked array where some step was marked without it. With
    ``autoreset="next_step"`` the column ``reset_only`` marks the rows in which an environment, having ended before, was
    only reset.
    """

    def __init__(
        self, tables: Sequence[PhaseSteps], phase_names: Sequence[str], rank_of_phase: Mapping[int, int] | None = None
    ) -> None:
        self.tables = tables
        self._phase_names = phase_names
        self._rank_of_phase = rank_of_phase or {}
        marks = np.concatenate([table.order for table in tables]) if tables else np.empty(0, np.int64)
        self._order = np.argsort(marks)

    @property
    def phase(self) -> npt.NDArray[np.object_]:
        """The name of the phase of each step."""
        names = [np.full(len(table.numbers), self._phase_names[table.phase], dtype=object) for table in self.tables]
        return np.concatenate(names)[self._order] if names else np.empty(0, dtype=object)

    @property
    def step(self) -> Integers:
        """The number of each step in its phase."""
        numbers = [table.numbers for table in self.tables]
        return np.concatenate(numbers)[self._order] if numbers else np.empty(0, np.int64)

    @property
    def rank(self) -> Integers | None:
        """The rank of the process of each step, -1 where it is not known; None where only one process recorded."""
        if not self._rank_of_phase:
            return None
        ranks = [
            np.full(len(table.numbers), self._rank_of_phase.get(table.phase, -1), np.int64) for table in self.tables
        ]
        return np.concatenate(ranks)[self._order] if ranks else np.empty(0, np.int64)

    @property
    def columns(self) -> dict[str, Array]:
        """All columns by name."""
        return {name: self[name] for name in self}

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for table in self.tables for name in table.columns))

    def __getitem__(self, name: str) -> Array:
        if not isinstance(name, str):
            raise RecordKeyError(
                f"steps[{name!r}]: give the name of a column, such as recording.steps['reward'][{name!r}]; "
                f"there are {', '.join(map(repr, self)) or 'none'}"
            )
        by_phase = {table.phase: table.columns[name] for table in self.tables if name in table.columns}
        if not by_phase:
            raise RecordKeyError(f"no step was marked with a column {name!r}; {did_you_mean(name, list(self))}")
        if len({column.shape[1:] for column in by_phase.values()}) > 1:
            shapes = " and ".join(
                f"{column.shape[1:]} in {self._phase_names[phase]!r}" for phase, column in by_phase.items()
            )
            raise StepError(f"the column {name!r} has other shapes in other phases: {shapes}; select(phase=...) first")
        like = next(iter(by_phase.values()))
        parts = [
            table.columns[name] if name in table.columns else _missing_column(len(table.numbers), like)
            for table in self.tables
        ]
        is_masked = any(isinstance(part, np.ma.MaskedArray) for part in parts)
        column: Array = (np.ma.concatenate if is_masked else np.concatenate)(parts)[self._order]
        return column

    def __repr__(self) -> str:
        return f"<{len(self)} steps: {', '.join(self) or 'no columns'}>"

    def _repr_html_(self) -> str:
        return columns_html(f"{len(self):,} steps", {name: self[name] for name in self})

    def of_phases(self, phases: Collection[int]) -> Steps:
        """The steps of some phases, by number."""
        return self._of_tables([table for table in self.tables if table.phase in phases])

    def restrict(self, phase: int, mask: Mask) -> Steps:
        """These steps without those of one phase that a mask leaves out."""
        tables = [_masked_table(table, mask) if table.phase == phase else table for table in self.tables]
        return self._of_tables([table for table in tables if len(table.numbers)])

    def _of_tables(self, tables: Sequence[PhaseSteps]) -> Steps:
        return Steps(tables, self._phase_names, self._rank_of_phase)


def steps_of(tables: Sequence[PhaseSteps], catalog: Catalog) -> Steps:
    """All steps of a source; with ``autoreset="next_step"`` also the column of rows that only reset."""
    if catalog.header.get("autoreset") == "next_step":
        tables = [_with_reset_only(table) for table in tables]
    rank_of_phase = {phase: origin.rank for origin in catalog.origins for phase in origin.phases}
    return Steps(tables, catalog.phases.items, rank_of_phase)


def n_environments(table: PhaseSteps) -> int:
    """How many environments the steps of a phase have an axis for; 0 without such an axis."""
    column = next((table.columns[name] for name in AXIS_COLUMNS if name in table.columns), None)
    return 0 if column is None or column.ndim == 1 else column.shape[1]


def _masked_table(table: PhaseSteps, mask: Mask) -> PhaseSteps:
    return msgspec.structs.replace(
        table,
        numbers=table.numbers[mask],
        order=table.order[mask],
        columns={name: column[mask] for name, column in table.columns.items()},
    )


def _missing_column(rows: int, like: Array) -> Array:
    """The rows of a phase in which no step was marked with a column: all masked."""
    data = np.zeros((rows, *like.shape[1:]), like.dtype)
    if like.dtype.kind == "f":
        data[:] = np.nan
    column: Array = np.ma.MaskedArray(data, np.True_)
    return column


def _with_reset_only(table: PhaseSteps) -> PhaseSteps:
    ends = ends_of(table)
    if ends is None or RESET_ONLY in table.columns:
        return table
    columns_before = [
        table.columns_before[name].astype(bool).reshape(-1) for name in END_COLUMNS if name in table.columns_before
    ]
    none_ended = np.zeros(ends.shape[1], np.bool_)
    ended_before = np.logical_or.reduce(columns_before) if columns_before else none_ended
    edges = _session_edges(table)
    parts = [np.zeros((0, ends.shape[1]), np.bool_)]
    for start, stop in zip(edges, edges[1:], strict=False):
        # A session begins with a reset of its own, which is no row.
        ended_before = none_ended if int(table.numbers[start]) in table.starts else ended_before
        parts.append(_reset_only_rows(ends[start:stop], ended_before))
    shape = next(table.columns[name].shape for name in END_COLUMNS if name in table.columns)
    reset_only = np.concatenate(parts).reshape(shape)
    return msgspec.structs.replace(table, columns={**table.columns, RESET_ONLY: reset_only})


def _reset_only_rows(ends: Array, ended_before: Array) -> Array:
    """The rows of a session in which environments were only reset, given which of them ended in the row before it."""
    reset_only = np.zeros_like(ends)
    # A row that only resets is not an end, whatever its columns say. Two ends in a row are rare, and only they need the
    # loop that goes from row to row.
    if (ends[:-1] & ends[1:]).any() or (ends[:1] & ended_before).any():
        for row in range(len(ends)):
            reset_only[row] = ended_before
            ended_before = ends[row] & ~ended_before
    else:
        reset_only[1:], reset_only[:1] = ends[:-1], ended_before
    return reset_only


def _session_edges(table: PhaseSteps) -> list[int]:
    """The rows at which sessions begin, and the end of the table."""
    starts = np.searchsorted(table.numbers, np.array(table.starts, np.int64))
    return sorted({0, *starts.tolist(), len(table.numbers)})


def ends_of(table: PhaseSteps) -> Array | None:
    """Whether the columns say of each environment that it ended in each step, of shape [steps, envs].

    None where no column says so; StepError where columns differ in shape.
    """
    columns = {name: table.columns[name] for name in END_COLUMNS if name in table.columns}
    if not columns:
        return None
    flags = [np.ma.filled(column.astype(bool), False).reshape(len(column), -1) for column in columns.values()]
    if len({flag.shape for flag in flags}) > 1:
        shapes = " and ".join(f"{name} {column.shape[1:]}" for name, column in columns.items())
        raise StepError(f"the columns that say when an episode ends differ in shape: {shapes}; give one value per env")
    ends: Array = np.logical_or.reduce(flags)
    return ends


def ends_show_same_step(ends: Array) -> bool:
    """Whether an environment ended in two steps running, [steps, envs]: a step that only resets can't end."""
    return bool((ends[:-1] & ends[1:]).any())


class Episode:
    """One environment from a reset to an end, or to the last step.

    ``start_step`` and ``stop_step`` number steps of ``phase``, the second not included. ``episode[key]`` are the values
    of a key, one per step, of shape [length, *feature]; ``columns`` the step columns of this environment.
    """

    __slots__ = ("_phase", "_rows", "env", "terminated", "truncated")

    def __init__(self, phase: PhaseEpisodes, env: int, rows: range, terminated: bool, truncated: bool) -> None:
        self._phase = phase
        self._rows = rows
        self.env = env
        self.terminated = terminated
        self.truncated = truncated

    @property
    def phase(self) -> str:
        """The name of the phase."""
        return self._phase.name

    @property
    def rank(self) -> int | None:
        """The rank of the process, -1 where it is not known; None where only one process recorded."""
        return self._phase.view.catalog.rank_of_phase(self._phase.table.phase)

    @property
    def process(self) -> Process | None:
        """The process that recorded it, with its worker, role and host; None where only one process recorded."""
        origin = self._phase.view.catalog.origin_of_phase(self._phase.table.phase)
        return None if origin is None else origin.process

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
    def columns(self) -> Mapping[str, Array]:
        """The step columns of this environment, of shape [length, *shape]."""
        rows = slice(self._rows.start, self._rows.stop)
        return {name: self._phase.column(name, rows, self.env) for name in self._phase.column_names}

    def __getitem__(self, key: str) -> Tensor:
        try:
            return self._phase.values(key, slice(self._rows.start, self._rows.stop))[:, self.env]
        except RecordKeyError as error:
            if key in self._phase.column_names:
                raise RecordKeyError(f"{key!r} is a column of the steps: episode.columns[{key!r}]") from error
            raise

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        end = "terminated" if self.terminated else "truncated" if self.truncated else "open"
        phase = f" of {self.phase!r}" if self.phase else ""
        return f"<Episode of env {self.env}: steps {self.start_step} to {self.stop_step - 1}{phase}, {end}>"

    def _repr_html_(self) -> str:
        return curves_html(repr(self)[1:-1], self.columns)


def episodes_of(view: View, steps: Steps, firings: Firings, autoreset: Autoreset | None = None) -> list[Episode]:
    """All episodes of the steps, phase by phase, in order of their start.

    ``autoreset`` is for recordings that don't say how their environments reset.
    """
    return [episode for phase in phase_episodes(view, steps, firings, autoreset) for episode in phase.episodes()]


def phase_episodes(
    view: View, steps: Steps, firings: Firings, autoreset: Autoreset | None = None
) -> list[PhaseEpisodes]:
    """The same as one table for each phase, for what reads many episodes at a time."""
    recorded = view.catalog.header.get("autoreset")
    if autoreset not in (None, "next_step", "same_step"):
        raise OptionError(f"episodes(autoreset={autoreset!r}): give {AUTORESET_WORDS}")
    if None not in (autoreset, recorded) and autoreset != recorded:
        raise OptionError(
            f"episodes(autoreset={autoreset!r}): it was recorded with autoreset={recorded!r}; leave autoreset= out"
        )
    autoreset = autoreset or recorded
    if not steps:
        raise StepError(
            "episodes are made of steps, and none was marked; call rec.step(terminated=..., truncated=...) after "
            "env.step"
        )
    return [
        PhaseEpisodes(view, _with_reset_only(table) if autoreset == "next_step" else table, firings, autoreset)
        for table in sorted(steps.tables, key=lambda table: table.phase)
    ]


class PhaseEpisodes:
    """The episodes of one phase: the environment and the rows of each, and the values that fired in its steps.

    ``env``, ``start``, ``stop``, ``terminated`` and ``truncated`` have one value for each episode, in order of their
    start. ``start`` and ``stop`` are rows of ``table``.
    """

    def __init__(self, view: View, table: PhaseSteps, firings: Firings, autoreset: Autoreset | None) -> None:
        self.view = view
        self.firings = firings
        self.table = table
        self.name = view.catalog.phases[table.phase]
        ends = ends_of(table)
        if ends is None:
            raise StepError(
                f"episodes need to know when they end, and the steps{self._where()} have no such column; call "
                "rec.step(terminated=..., truncated=...) with one value per environment"
            )
        if not _is_gapless(table):
            raise StepError("episodes need every step from first to last; select steps by a range, or not at all")
        end_columns = {name: table.columns[name] for name in END_COLUMNS if name in table.columns}
        for name, column in end_columns.items():
            mask = np.ma.getmaskarray(column)
            if mask.any():
                step = table.numbers[np.argwhere(mask)[0][0]]
                raise StepError(f"step {step}{self._where()} was marked without {name!r}; give it every time")
        self.ends: npt.NDArray[np.bool_] = ends
        reset_only = table.columns.get(RESET_ONLY)
        self.reset_only = np.zeros_like(ends) if reset_only is None else reset_only.reshape(ends.shape)
        self.has_env_axis = any(column.ndim > 1 for column in end_columns.values())
        if autoreset is None and self.has_env_axis:
            self._check_autoreset()
        self._set_episodes()
        self._records: dict[str, StepRecords] = {}

    @property
    def column_names(self) -> list[str]:
        """The columns that an episode shows."""
        return [name for name in self.table.columns if name != RESET_ONLY]

    def column(self, name: str, rows: slice | Integers, env: int | Integers) -> Array:
        """A column in some rows, where it has one value per environment that of ``env``."""
        column = self.table.columns[name]
        return column[rows, env] if self.has_environments(name, column) else column[rows]

    def has_environments(self, name: str, column: Array) -> bool:
        """Whether the second axis of a column counts environments; the ends of episodes say whether there is one."""
        if not self.has_env_axis or column.ndim == 1:
            return False
        n_envs = self.ends.shape[1]
        if column.shape[1] != n_envs:  # of a file that was written when this was not checked at each step
            raise StepError(
                f"the column {name!r}{self._where()} has shape {column.shape[1:]} in each step, which is not one row "
                f"per environment ({n_envs} of them); read it from recording.steps"
            )
        return True

    def episodes(self) -> list[Episode]:
        """All of them."""
        facts = zip(
            self.env.tolist(),
            self.start.tolist(),
            self.stop.tolist(),
            self.terminated.tolist(),
            self.truncated.tolist(),
            strict=True,
        )
        return [
            Episode(self, env, range(start, stop), terminated, truncated)
            for env, start, stop, terminated, truncated in facts
        ]

    def values(self, key: str, rows: slice | Integers) -> Tensor:
        """The values of a key in some rows, of shape [rows, envs, ...]; a single environment has an axis too."""
        if key not in self._records:
            view = self.view.of_passes(self.view.passes["phase"] == self.table.phase)
            self._records[key] = StepRecords.of(view.of_metas(metas_of_key(view, key)), self.table)
        values = self.firings.stack(self._records[key].part(rows), key)
        if not self.has_env_axis:
            return values if values.ndim > 1 and values.shape[1] == 1 else values[:, None]
        n_envs = self.ends.shape[1]
        if values.ndim < 2 or values.shape[1] != n_envs:
            raise StepError(
                f"{key!r} has values of shape {tuple(values.shape[1:])}, and episodes need one row per environment "
                f"({n_envs} of them); choose another key, or recording.select(batch={n_envs})"
            )
        return values

    def _set_episodes(self) -> None:
        # The next session resets its environments, so an episode that is open at the end of a session stays open.
        is_last = self.ends.copy()
        is_last[np.array(_session_edges(self.table)[1:], np.int64) - 1] = True
        env, last = np.nonzero(is_last.T)
        start = np.concatenate([[0], last[:-1] + 1])
        start[np.flatnonzero(np.diff(env, prepend=-1))] = 0
        start += self.reset_only[np.minimum(start, len(self.ends) - 1), env]
        has_rows = start <= last
        env, start, last = env[has_rows], start[has_rows], last[has_rows]
        order = np.lexsort((env, start))
        self.env, self.start, self.stop = env[order], start[order], last[order] + 1
        self.terminated = self._flags(("terminated", "done"))
        self.truncated = self._flags(("truncated",))

    def _flags(self, names: tuple[str, ...]) -> npt.NDArray[np.bool_]:
        """Whether one of some columns is true in the last row of each episode."""
        flags = np.zeros(len(self.env), np.bool_)
        for name in names:
            if name in self.table.columns:
                flags |= self.table.columns[name].reshape(self.ends.shape)[self.stop - 1, self.env].astype(bool)
        return flags

    def _check_autoreset(self) -> None:
        """Refuse to guess where several environments ended; after a single end the session has warned."""
        edges = _session_edges(self.table)
        unclear = np.zeros_like(self.ends)
        for start, stop in zip(edges, edges[1:], strict=False):
            ends = self.ends[start:stop]
            if not ends_show_same_step(ends):
                unclear[start : stop - 1] = ends[:-1]
        if unclear.any() and np.count_nonzero(self.ends.any(axis=0)) > 1:
            row = int(np.argmax(unclear.any(axis=1)))
            raise StepError(
                f"an environment ended in step {self.table.numbers[row]}{self._where()}, and the recording does "
                "not say whether the step after it only resets. Give the recorder, episodes() or export() "
                f"{AUTORESET_WORDS}"
            )

    def _where(self) -> str:
        return f" of phase {self.name!r}" if self.name else ""


class Firings(msgspec.Struct, frozen=True):
    """What stands in the row of a step in which a key did not fire once.

    ``fill`` stands where it did not fire; None: that is an error. ``last`` takes the last of several firings; else they
    are an error.
    """

    fill: float | None = None
    last: bool = False

    @classmethod
    def of(cls, what: str, fill: Any, firings: Any) -> Firings:
        """The options of a public method; OptionError for others."""
        if fill is not None and (not isinstance(fill, int | float) or isinstance(fill, bool)):
            raise OptionError(f"{what}(fill={fill!r}): give a number, such as float('nan'), or leave it out")
        if firings not in (None, "last"):
            raise OptionError(f"{what}(firings={firings!r}): give firings='last', or leave it out")
        return cls(fill, firings == "last")

    def stack(self, records: StepRecords, key: str, part: Part | None = None) -> Tensor:
        """One value for each step."""
        counts, fill = records.counts, self.fill
        is_wrong = np.zeros(len(counts), np.bool_) if self.last else counts > 1
        if fill is None:
            is_wrong = is_wrong | (counts == 0)
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            remedy = (
                "give fill=, such as float('nan'), for steps without a value"
                if counts[row] == 0
                else "leave other passes out with recording.select(entry=, batch=, grad=, phase=), or take the last of "
                "them with firings='last'"
            )
            raise StepError(
                f"{key!r} fired {counts[row]} times in step {records.numbers[row]}{records.where}, and one firing per "
                f"step is needed; {remedy}"
            )
        has_value = counts > 0
        if fill is None or has_value.all():
            return stack_records(records.view.take(records.last), key, part)
        if not has_value.any():
            first, last = records.numbers[[0, -1]].tolist()
            raise StepError(f"{key!r} fired in none of the steps {first} to {last}{records.where}")
        values = stack_records(records.view.take(records.last[has_value]), key, part)
        if not (values.is_floating_point() or values.is_complex() or float(fill).is_integer()):
            raise StepError(f"fill={fill!r} can't stand among {key!r}, of {values.dtype}; give a whole number")
        with outside_torch_modes():
            filled = values.new_full((len(counts), *values.shape[1:]), fill)
            filled[torch.from_numpy(has_value)] = values
        return filled


class StepRecords(msgspec.Struct, frozen=True):
    """The records of a key by step: the last one of each step by its position in the view, and how many there are.

    ``numbers`` are those of the steps; ``where`` says which phase and rank they are of, for messages.
    """

    view: View
    last: Integers
    counts: Integers
    numbers: Integers
    where: str

    @classmethod
    def of(cls, view: View, table: PhaseSteps) -> StepRecords:
        """The records of a view that belong to the steps of a phase."""
        name, rank = view.catalog.phases[table.phase], view.catalog.rank_of_phase(table.phase)
        where = f" of phase {name!r}" if name else ""
        where += f" of rank {rank}" if rank is not None and rank >= 0 else ""
        view = view.of_passes(view.passes["phase"] == table.phase)
        steps = view.passes["step"][view.pass_positions]
        rows = np.searchsorted(table.numbers, steps)
        in_table = np.flatnonzero(table.numbers[np.minimum(rows, len(table.numbers) - 1)] == steps)
        counts = np.bincount(rows[in_table], minlength=len(table.numbers))
        last = np.zeros(len(table.numbers), np.int64)
        last[rows[in_table]] = in_table  # of several, the one that is assigned last stays
        return cls(view, last, counts, table.numbers, where)

    def part(self, rows: slice | Integers) -> StepRecords:
        """Those of some steps."""
        return StepRecords(self.view, self.last[rows], self.counts[rows], self.numbers[rows], self.where)


def _is_gapless(table: PhaseSteps) -> bool:
    return bool((np.diff(table.numbers) == 1).all())
