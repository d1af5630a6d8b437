"""The statistics of a run: what was measured of each site in each time bin, as tables, and as what a page is made of.

statistics = recording.describe()
statistics                              # a table, one line for each site
statistics["1/relu"]["dead_units"]      # one number for each bin, NaN where the site did not run
statistics.time.last_pass               # where the bins end
statistics.to_pandas()                  # one row for each site and bin
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from fastrec._errors import RecordKeyError, did_you_mean
from fastrec._optional import require
from fastrec.events.sites import Frame, Site
from fastrec.report.html import table_html
from fastrec.report.measures import BY_NAME, MAX_RANK_UNITS, MAX_UNITS, definition_of
from fastrec.report.sums import BadValue, Floats, Sums
from fastrec.report.text import format_figure, format_trend, text_table
from fastrec.report.units import ACTIVATIONS

if TYPE_CHECKING:
    import pandas

Integers = npt.NDArray[np.int64]


class TimeBins(msgspec.Struct, frozen=True):
    """Where the bins of a run lie: consecutive stretches of passes.

    Arguments:
        first_pass, last_pass: the indices of the first and the last pass of each bin.
        passes: how many passes each has.
        first_mark, last_mark: how many steps, of all phases, had been marked when its first pass ended, and its last.
        started, ended: seconds from the beginning of the session.
        episode_ends: how many episodes, of all environments, ended in each bin.
        phases: for each phase by name, how many passes of each bin belong to it.
    """

    first_pass: Integers
    last_pass: Integers
    passes: Integers
    first_mark: Integers
    last_mark: Integers
    started: Floats
    ended: Floats
    episode_ends: Integers
    phases: Mapping[str, Integers]

    def __len__(self) -> int:
        return len(self.first_pass)


class BadStep(msgspec.Struct, frozen=True):
    """Where a value of a site was not finite for the first time; ``step`` is None where no step was marked."""

    kind: str
    pass_index: int
    step: int | None = None
    phase: str = ""

    def __str__(self) -> str:
        of = f" of {self.phase!r}" if self.phase else ""
        where = (
            f"step {self.step:,}{of} (pass {self.pass_index:,})"
            if self.step is not None
            else f"pass {self.pass_index:,}"
        )
        return f"first {'NaN' if self.kind == 'nan' else 'infinity'} in {where}"


class SiteStatistics:
    """What was measured of one site: ``site["dead_units"]`` has one number for each bin.

    Arguments:
        site: where in the model it is.
        units: how many units its values have; None where that varies, or nothing was recorded.
        unit_axis: which axis of a value counts them.
        bins: what was measured in each bin, by measure.
        whole: what was measured of the whole run, by measure.
        records: how many records it has.
        bad: where a value was not finite for the first time; None where all are.
    """

    def __init__(
        self,
        site: Site,
        bins: Mapping[str, Floats],
        whole: Sums,
        bad: BadStep | None,
        unit_axis: int | None = None,
    ) -> None:
        self.site = site
        self.bins = bins
        self.whole: dict[str, float] = {**whole.measures(), "drift": math.nan}
        self.records = whole.records
        self.values = whole.values
        self.units = None if whole.units_vary else whole.unit_count
        self.unit_axis = unit_axis
        self.bad = bad
        self._units_vary = whole.units_vary

    @property
    def name(self) -> str:
        """The name of the site."""
        return self.site.name

    @property
    def frames(self) -> Sequence[Frame]:
        """The modules that it lies in, the outermost first."""
        return self.site.frames

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers has to know."""
        notes = []
        if not self.values:
            notes.append("no values were recorded")
        elif self.values == self.whole["nan"] + self.whole["inf"]:
            notes.append("no value is finite")
        if self._units_vary:
            notes.append("the number of units varies, so nothing is said about units")
        if self.units is not None and self.units > MAX_UNITS:
            notes.append(f"dead and dormant units and drift: of {MAX_UNITS:,} of {self.units:,} units, spread evenly")
        if self.units is not None and self.units > MAX_RANK_UNITS and np.isfinite(self["rank"]).any():
            notes.append(f"effective rank: of {MAX_RANK_UNITS:,} of {self.units:,} units, spread evenly")
        if self.site.layer_type not in ACTIVATIONS:
            notes.append(f"{self.site.layer_type!r} is no activation function, so nothing is said about dormant units")
        if self.bad is not None:
            notes.append(str(self.bad))
        return notes

    def __getitem__(self, measure: str) -> Floats:
        definition_of(measure)
        return self.bins[measure]

    def __repr__(self) -> str:
        units = "" if self.units is None else f", {self.units:,} units"
        return f"<statistics of {self.name!r}: {self.records:,} records{units}>"


COLUMNS = ("site", "records", "units", "5 %", "median", "95 %", "zeros", "dead", "dormant", "norm", "rank", "NaN, inf")

MAX_ROWS_SHOWN = 200


class RunStatistics(Mapping[str, SiteStatistics]):
    """The statistics of a run: of each site, in each time bin.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> with fastrec.Recorder(model, keep_op="relu") as rec:
    ...     for _ in range(6):
    ...         out = model(torch.ones(5, 4))
    >>> statistics = rec.recording.describe(bins=3)
    >>> len(statistics.time), statistics["1/relu"]["mean"].shape
    (3, (3,))

    It maps the names of sites to their statistics. In its table the quantiles are those of the whole run; of zeros,
    dead and dormant units (tau 0.025), norms and ranks it shows the first bin and the last, where they differ.
    """

    def __init__(self, sites: Mapping[str, SiteStatistics], time: TimeBins, name: str = "") -> None:
        self._sites = dict(sites)
        self.time = time
        self.name = name

    def __getitem__(self, site: str) -> SiteStatistics:
        if site not in self._sites:
            raise RecordKeyError(f"there are no statistics of {site!r}; {did_you_mean(site, self._sites)}")
        return self._sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    @property
    def records(self) -> int:
        """How many records were looked at."""
        return sum(site.records for site in self._sites.values())

    @property
    def alarms(self) -> list[tuple[str, BadStep]]:
        """The sites with values that are not finite, the first to have one first."""
        bad = [(name, site.bad) for name, site in self._sites.items() if site.bad is not None]
        return sorted(bad, key=lambda alarm: alarm[1].pass_index)

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each site and bin in which it ran, with the measures as columns; needs the extra ``pandas``."""
        pd = require("pandas", extra="pandas", what="to_pandas()")
        count = len(self.time)
        columns: dict[str, list[Any]] = {"site": []}
        for name in (*_TIME_COLUMNS, *BY_NAME):
            columns[name] = []
        for name, site in self._sites.items():
            ran = np.flatnonzero(np.isfinite(site["zeros"])) if count else np.empty(0, np.int64)
            columns["site"] += [name] * len(ran)
            for column in _TIME_COLUMNS:
                columns[column] += getattr(self.time, column)[ran].tolist()
            for measure in BY_NAME:
                columns[measure] += site[measure][ran].tolist()
        frame: pandas.DataFrame = pd.DataFrame(columns)
        return frame

    def __repr__(self) -> str:
        rows = [_text_row(site) for site in list(self._sites.values())[:MAX_ROWS_SHOWN]]
        lines = [self._heading(), *(text_table([COLUMNS, *rows], left=("site",)) if rows else [])]
        if len(self._sites) > MAX_ROWS_SHOWN:
            lines.append(f"and {len(self._sites) - MAX_ROWS_SHOWN:,} more sites")
        lines += [f"{name!r}: {bad}" for name, bad in self.alarms]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [_html_row(site) for site in list(self._sites.values())[:MAX_ROWS_SHOWN]]
        notes = [f"{name}: {bad}" for name, bad in self.alarms]
        if len(self._sites) > MAX_ROWS_SHOWN:
            notes.append(f"and {len(self._sites) - MAX_ROWS_SHOWN:,} more sites")
        return table_html(self._heading(), [*COLUMNS[:-1], "NaN, inf"], rows, notes)

    def _heading(self) -> str:
        sites, bins = len(self._sites), len(self.time)
        passes = f", passes {self.time.first_pass[0]:,} to {self.time.last_pass[-1]:,}" if bins else ""
        return f"{sites:,} site{'' if sites == 1 else 's'}, {self.records:,} records in {bins:,} time bins{passes}"


_TIME_COLUMNS = ("first_pass", "last_pass", "first_mark", "last_mark", "started", "ended", "episode_ends")

_TRENDS = ("zeros", "dead_units", "dormant_0.025", "norm", "rank")


def _text_row(site: SiteStatistics) -> tuple[str, ...]:
    return (
        site.name,
        f"{site.records:,}",
        "" if site.units is None else f"{site.units:,}",
        *(format_figure(BY_NAME[name], site.whole[name]) for name in ("q05", "median", "q95")),
        *(format_trend(BY_NAME[name], site[name]) for name in _TRENDS),
        _format_bad(site),
    )


def _html_row(site: SiteStatistics) -> tuple[Any, ...]:
    """Cells of text, and of curves with their texts."""
    text = _text_row(site)
    first = 3 + 3
    curves = [(site[name], text[first + i]) for i, name in enumerate(_TRENDS)]
    return (*text[:first], *curves, text[-1])


def _format_bad(site: SiteStatistics) -> str:
    counts = [
        f"{site.whole[name]:,.0f} {word}" for name, word in (("nan", "NaN"), ("inf", "inf")) if site.whole[name] > 0
    ]
    return ", ".join(counts) or "-"


def curves_of(bins: Sequence[Mapping[str, float] | None]) -> dict[str, Floats]:
    """What was measured in each bin, by measure; NaN where a site did not run."""
    return {name: np.array([math.nan if own is None else own[name] for own in bins]) for name in BY_NAME}


def bad_step(bad: BadValue | None, step: int | None, phase: str) -> BadStep | None:
    """Where a value was not finite, named by its step."""
    return None if bad is None else BadStep(bad.kind, bad.pass_index, step, phase)
