"""The statistics of a recording: its values are read once, site by site and bit by bit, and added up in time bins.

One site's sums are held at a time, and of those one bin's and the whole run's, so memory does not grow with the
recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from fastrec._errors import OptionError, StepError, did_you_mean
from fastrec.recording._arrays import real_array
from fastrec.recording._source import Integers, Part, PhaseSteps
from fastrec.recording._steps import ends_of
from fastrec.recording._view import View
from fastrec.report.measures import MAX_RANK_BINS
from fastrec.report.rank import rank_rows
from fastrec.report.run import BadStep, RunStatistics, SiteStatistics, TimeBins, bad_step, curves_of
from fastrec.report.sums import Floats, Sums
from fastrec.report.units import SiteTraits, UnitAxes

CHUNK = 4 << 20
"""So many bytes are read at a time, at least a record."""

Progress = Callable[[int, int], None]


class DescribeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a recording is described; ``Recording.describe`` says what each option is."""

    bins: int = 50
    ranks: bool = True
    unit_axis: Mapping[str, int] | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        bins: Any = self.bins
        if not isinstance(bins, int) or isinstance(bins, bool) or bins < 1:
            raise OptionError(f"describe(bins={bins!r}): give a whole number from 1 up")


def describe_options(given: Mapping[str, Any]) -> DescribeOptions:
    """The options by name; an OptionError for one that there is not."""
    for name in given:
        if name not in DescribeOptions.__struct_fields__:
            raise OptionError(
                f"describe has no option {name!r}; {did_you_mean(name, DescribeOptions.__struct_fields__)}"
            )
    return DescribeOptions(**given)


def describe(view: View, tables: Sequence[PhaseSteps], options: DescribeOptions) -> RunStatistics:
    """The statistics of the records of a view, whose steps are in ``tables``."""
    described = _Described(view, tables, options)
    return RunStatistics(described.sites(), described.time)


class _Described:
    def __init__(self, view: View, tables: Sequence[PhaseSteps], options: DescribeOptions) -> None:
        self._view = view
        self._options = options
        count = len(view.passes)
        self._edges = np.linspace(0, count, min(options.bins, count) + 1).astype(np.int64)
        self._axes = UnitAxes(options.unit_axis)
        self.time = time_bins(view, tables, self._edges)
        # On so many bins at most, because each takes an eigenvalue problem.
        self._rank_every = -(-len(self.time) // MAX_RANK_BINS) if options.ranks else 0
        self._total = self._done = 0
        if options.progress is not None:
            self._total = int(view.source.nbytes(view.meta_numbers, view.rows).sum())

    def sites(self) -> dict[str, SiteStatistics]:
        """The statistics of each site, in the order in which they first occurred."""
        metas_of: dict[str, list[int]] = {}
        numbers, first = np.unique(self._view.meta_numbers, return_index=True)
        for meta in numbers[np.argsort(first)].tolist():
            metas_of.setdefault(self._view.site(meta).name, []).append(meta)
        return {name: self._site(metas) for name, metas in metas_of.items()}

    def _site(self, metas: Sequence[int]) -> SiteStatistics:
        view, site = self._view.of_metas(metas), self._view.site(metas[0])
        traits = SiteTraits.of(site)
        axis_of = {meta: self._axes.of(view.catalog, view.meta(meta)) for meta in metas}
        edges = np.searchsorted(view.pass_positions, self._edges)
        whole = Sums(traits)
        curves: list[dict[str, float] | None] = []
        first: Floats | None = None
        for number, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
            if start == stop:
                curves.append(None)
                continue
            ranks = bool(self._rank_every) and number % self._rank_every == 0
            sums = self._bin(view, np.arange(start, stop), axis_of, Sums(traits, ranks=ranks))
            if first is None and sums.units is not None:
                first = sums.units.mean_vector()
            curves.append(sums.measures(first))
            whole.merge(sums)
        axes = set(axis_of.values())
        return SiteStatistics(
            site, curves_of(curves), whole, self._bad_step(whole), axes.pop() if len(axes) == 1 else None
        )

    def _bin(self, view: View, at: Integers, axis_of: Mapping[int, int], sums: Sums) -> Sums:
        """The sums of the records at some positions."""
        metas = view.meta_numbers[at]
        for meta, part, positions in _alike(view, at, metas, axis_of):
            shape, itemsize = view.meta(meta).shape, 8
            step = max(1, CHUNK // max(1, int(np.prod(shape)) * itemsize))
            for begin in range(0, len(positions), step):
                some = positions[begin : begin + step]
                self._read(view, some, part, axis_of[meta], sums, len(positions))
        return sums

    def _read(self, view: View, at: Integers, part: Part, axis: int, sums: Sums, records: int) -> None:
        """Add the values of some of so many records."""
        rows = view.rows[at]
        at = at[rows >= 0]
        sums.records += len(rows) - len(at)  # whose context alone was kept
        if not len(at):
            return
        passes = view.passes["pass_index"][view.pass_positions[at]]
        for values in view.source.values(view.meta_numbers[at], view.rows[at], part):
            dims = values.dim() - 1
            axis = dims - 1 if part != "activation" else axis  # a transform may make anything of a value
            units = values.shape[1 + axis] if dims else 1
            rows_each = values[0].numel() // max(1, units)
            step = -(-records * rows_each // rank_rows(units))
            sums.add_values(real_array(values), axis, passes[: len(values)], max(1, step))
            passes = passes[len(values) :]
            self._tell(values.nbytes)

    def _tell(self, nbytes: int) -> None:
        if self._options.progress is not None:
            self._done += nbytes
            self._options.progress(min(self._done, self._total), self._total)

    def _bad_step(self, whole: Sums) -> BadStep | None:
        if whole.bad is None:
            return None
        view = self._view
        position = int(np.searchsorted(view.passes["pass_index"], whole.bad.pass_index))
        info = view.info(position)
        return bad_step(whole.bad, view.step_of(info), view.catalog.phases[info.phase])


def _alike(view: View, at: Integers, metas: Integers, axis_of: Mapping[int, int]) -> list[tuple[int, Part, Integers]]:
    """The records at some positions, in groups of one part and one axis of units, each with one of its metas."""
    kinds: dict[tuple[Part, int], list[int]] = {}
    for meta in np.unique(metas).tolist():
        part = "activation" if view.spec(meta).save_raw else "transformed_activation"
        kinds.setdefault((part, axis_of[meta]), []).append(meta)
    if len(kinds) == 1:
        ((part, _), members), *_ = kinds.items()
        return [(_largest(view, members), part, at)]
    return [(_largest(view, members), part, at[np.isin(metas, members)]) for (part, _), members in kinds.items()]


def _largest(view: View, metas: Sequence[int]) -> int:
    return max(metas, key=lambda meta: int(np.prod(view.meta(meta).shape)))


def time_bins(view: View, tables: Sequence[PhaseSteps], edges: Integers) -> TimeBins:
    """Where the bins lie that the passes of a view are divided into."""
    passes = view.passes
    first, last = edges[:-1], edges[1:] - 1
    if not len(passes):
        first = last = np.empty(0, np.int64)
    marks = marks_before(view, tables)
    started = passes["started"]
    bins = np.repeat(np.arange(len(first)), np.diff(edges) if len(first) else 0)
    phases = {}
    for number in np.unique(passes["phase"]).tolist():
        counts = np.bincount(bins[passes["phase"] == number], minlength=len(first))
        phases[view.catalog.phases[number]] = counts.astype(np.int64)
    ends = episode_ends(tables)
    last_marks = np.maximum.accumulate(marks)[last] if len(first) else np.empty(0, np.int64)
    ended_in = np.searchsorted(last_marks, ends, side="left")
    return TimeBins(
        first_pass=passes["pass_index"][first],
        last_pass=passes["pass_index"][last],
        passes=last - first + 1,
        first_mark=marks[first],
        last_mark=last_marks,
        started=started[first],
        ended=started[last] + passes["duration"][last],
        episode_ends=np.bincount(ended_in[ended_in < len(first)], minlength=len(first)).astype(np.int64),
        phases=phases,
    )


def marks_before(view: View, tables: Sequence[PhaseSteps]) -> Integers:
    """How many steps, of all phases, had been marked when each pass ended."""
    passes = view.passes
    marks = np.full(len(passes), -1, np.int64)
    for table in tables:
        at = np.flatnonzero(passes["phase"] == table.phase)
        row = np.searchsorted(table.numbers, passes["step"][at])
        known = row < len(table.numbers)
        marks[at[known]] = table.order[row[known]]
        if len(table.order):  # passes of an open step come after all that were marked
            marks[at[~known]] = table.order[-1] + 1
    # Passes of phases without steps lie between those that have some.
    return np.maximum.accumulate(np.maximum(marks, 0)) if len(marks) else marks


def episode_ends(tables: Sequence[PhaseSteps]) -> Integers:
    """The step, counted over all phases, of each end of an episode."""
    found = []
    for table in tables:
        try:
            done = ends_of(table)
        except StepError:  # columns that do not fit together tell of no ends
            done = None
        if done is not None:
            found.append(np.repeat(table.order, done.sum(axis=1)))
    return np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)
