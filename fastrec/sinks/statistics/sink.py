"""A sink that keeps no values: it measures them while the loop runs, and keeps what adds up.

    sink = StatisticsSink()
    with Recorder(policy, keep_op="relu", sink=sink):
        train()
    sink.statistics                      # at any time, also inside of the block
    sink.to_html("run.html")

Values are copied into a block of their column as RAM copies them, and measured when the block is full and all passes
that have a row in it have ended: measuring many values at once costs a fraction of measuring each. The run is divided
into time bins of equally many passes; when there are too many, neighbours are merged and the next ones are twice as
long. So memory depends on the sites, their units and ``bins``, and not on how long the run is.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor

from fastrec._errors import OptionError, SessionError
from fastrec._torch.tensors import check_copyable
from fastrec.events.sites import Catalog, PassInfo
from fastrec.recording._arrays import real_array
from fastrec.recording._source import Array, Integers
from fastrec.recording._steps import END_COLUMNS
from fastrec.report.page import write_report
from fastrec.report.rank import rank_rows
from fastrec.report.run import RunStatistics
from fastrec.report.units import UnitAxes
from fastrec.sinks._blocks import Layout
from fastrec.sinks._copying import BytesCopier, is_its_bytes
from fastrec.sinks._protocol import ColumnWriter, PassLog
from fastrec.sinks.ram.columns import RowCopier
from fastrec.sinks.statistics.site import SiteSums
from fastrec.sinks.statistics.staging import Staging, StatisticsBlock, TransformColumn
from fastrec.sinks.statistics.timeline import Timeline, table_of
from fastrec.sinks.statistics.window import LOGGED, StatisticsWindow

SKIPPED = -2
"""The row of a value that is not looked at."""


class StatisticsSink:
    """Keeps statistics of the values of each site over the run, and no values.

    >>> import torch, fastrec
    >>> policy = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    >>> sink = fastrec.sinks.StatisticsSink(bins=10)
    >>> with fastrec.Recorder(policy, keep_op="relu", sink=sink):
    ...     for _ in range(1000):
    ...         action = policy(torch.ones(8, 4))
    >>> sink.statistics["1/relu"].records, len(sink.statistics.time)
    (1000, 8)

    Arguments:
        every: look at every so many-th pass; default 1, all of them. The recorder goes on asking for values in each
            pass: to leave passes out altogether, use the predicate ``every(n)``.
        bins: into how many stretches the run is divided at most; default 100.
        ranks: whether to compute effective ranks; default False. It takes some milliseconds for each bin and site.
        unit_axis: which axis of a value counts the units, by globs of sites; as in ``Recording.describe``.

    It can be read at any time, and given with other sinks: ``sink=[RAMSink(), StatisticsSink()]``. A sink belongs to
    one session. Raises OptionError for numbers that do not fit.
    """

    def __init__(
        self,
        *,
        every: int = 1,
        bins: int = 100,
        ranks: bool = False,
        unit_axis: Mapping[str, int] | None = None,
    ) -> None:
        options: list[tuple[str, Any, int]] = [("every", every, 1), ("bins", bins, 2)]
        for name, value, least in options:
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise OptionError(f"StatisticsSink({name}={value!r}): give a whole number from {least} up")
        self._ranks = ranks
        self._axes = UnitAxes(unit_axis)
        self._sampler = _Sampler(every)
        self._timeline = Timeline(bins, every)
        self._staging = Staging(self._measure)
        self._catalog: Catalog | None = None
        self._columns: dict[tuple[Any, ...], RowCopier | TransformColumn] = {}
        self._sites: dict[str, SiteSums] = {}  # by name: entries of a model may reach one site by other ways
        self._windows: list[StatisticsWindow] = []
        self._marked: set[int] = set()
        self._lock = threading.RLock()

    def open(self, catalog: Catalog) -> PassLog:
        """A session begins."""
        if self._catalog is not None:
            raise SessionError("this StatisticsSink already belongs to a session; give each recorder a sink of its own")
        self._catalog = catalog
        return self

    def column(self, meta: int, value: Tensor) -> ColumnWriter:
        """Where values like this one go."""
        check_copyable(value)
        catalog = self._opened()
        found = catalog.metas[meta]
        axis = self._axes.of(catalog, found)
        site = catalog.sites[found.site]
        key = (site.name, found.spec, Layout.of(value), axis)
        with self._lock:
            if site.name not in self._sites:
                self._sites[site.name] = SiteSums(site, ranks=self._ranks)
            self._sites[site.name].axes.add(axis)
            column = self._columns.get(key)
            if column is None:
                spec = catalog.specs[found.spec]
                column = self._columns[key] = self._staging.column(site.name, value, spec, axis)
        # The quicker way for values that are their bytes asks nothing of each.
        copies_bytes = isinstance(column, RowCopier) and is_its_bytes(value)
        writer = BytesCopier(column) if isinstance(column, RowCopier) and copies_bytes else column
        return writer if self._sampler.every == 1 else _SampledColumn(writer, self._sampler)

    def commit(self, info: PassInfo, metas: Sequence[int], rows: Sequence[int], times: Sequence[float]) -> None:
        """A pass ended: its values can be measured."""
        self._sampler.end_pass()
        if not rows:
            return
        with self._lock:
            for _ in range(self._timeline.widen(info.index)):
                for site in self._sites.values():
                    site.widen()
            if self._timeline.add(info) and self._ranks:
                self._measure_all()
                for site in self._sites.values():
                    site.close_ranks()
            end = self._staging.end
            for row in rows:
                if row >= 0:
                    end(row, info)

    def mark(self, phase: int, step: int, columns: Mapping[str, Array]) -> None:
        """A step was marked."""
        flags = [columns[name] != 0 for name in END_COLUMNS if name in columns]
        fit = len({flag.shape for flag in flags}) == 1  # columns that do not fit together tell of no ends
        with self._lock:
            self._marked.add(phase)
            self._timeline.mark(int(np.count_nonzero(np.logical_or.reduce(flags))) if fit else 0)

    def close(self) -> None:
        """The session ended; what was measured stays readable."""
        with self._lock:
            self._measure_all()

    @property
    def statistics(self) -> RunStatistics:
        """The statistics of the passes that ended so far, a table when it is shown."""
        catalog = self._opened()
        with self._lock:
            self._measure_all()
            bins = self._timeline.bins()
            numbers = [bin.number for bin in bins]
            sites = {name: sums.statistics(numbers, catalog, self._marked) for name, sums in self._sites.items()}
            return RunStatistics(sites, table_of(bins, catalog))

    def window(self, measures: Sequence[str] = LOGGED) -> StatisticsWindow:
        """What a logger reads: the measures of what was recorded since it last asked.

        Arguments:
            measures: their names; by default those that tell most about training.
        """
        window = StatisticsWindow(measures, self._update)
        with self._lock:
            self._measure_all()
            self._windows.append(window)
        return window

    def to_html(
        self, path: str | PathLike[str], *, title: str = "statistics of a run", overwrite: bool = False
    ) -> None:
        """Write a page of the statistics so far, like that of ``Recording.to_html``."""
        write_report({title: self.statistics}, path, overwrite=overwrite)

    def __repr__(self) -> str:
        return f"<StatisticsSink of {len(self._sites)} sites in {len(self._timeline)} time bins>"

    def _opened(self) -> Catalog:
        if self._catalog is None:
            raise SessionError("this StatisticsSink belongs to no session yet; open one with Recorder(..., sink=sink)")
        return self._catalog

    def _update(self) -> None:
        with self._lock:
            self._measure_all()

    def _measure_all(self) -> None:
        for block in list(self._staging.blocks.values()):
            self._measure(block)

    def _measure(self, block: StatisticsBlock) -> None:
        """Add the values of passes that ended to the sums of their time bins."""
        infos = [info for info in block.infos if info is not None]
        if not infos:
            return
        rows = np.flatnonzero([info is not None for info in block.infos])
        passes = np.array([info.index for info in infos], np.int64)
        numbers = self._timeline.numbers_of(passes)
        values, site = real_array(block.values), self._sites[block.site]
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            piece, some = site.piece(), _take(values, rows[chosen])
            piece.add_values(some, block.axis, passes[chosen], self._rank_step(some, block.axis))
            for window in self._windows:
                window.add(site.site, piece)
            site.add(number, piece, infos)
        block.infos = [None] * len(block.infos)

    def _rank_step(self, values: Array, axis: int) -> int:
        """Of how many rows one counts for the rank of a bin."""
        if not self._ranks or axis < 0 or not values.size:
            return 1
        units = int(values.shape[1 + axis])
        expected = self._timeline.width * int(values[0].size) // units
        return -(-expected // rank_rows(units))


def _take(values: Array, rows: Integers) -> Array:
    """Some rows, without a copy where they lie together."""
    first, last = int(rows[0]), int(rows[-1])
    some: Array = values[first : last + 1] if last - first + 1 == len(rows) else values[rows]
    return some


class _Sampler:
    """Which passes a sink looks at, for its columns."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.skips = False
        self._passes = 0

    def end_pass(self) -> None:
        """A pass ended."""
        if self.every > 1:
            self._passes += 1
            self.skips = self._passes % self.every != 0


class _SampledColumn:
    """A column that leaves out the passes that are not looked at."""

    def __init__(self, column: ColumnWriter, sampler: _Sampler) -> None:
        self._append = column.append
        self._discard = column.discard
        self._sampler = sampler

    def append(self, value: Tensor) -> int:
        """Copy a value now, in a pass that is looked at; its row."""
        return SKIPPED if self._sampler.skips else self._append(value)

    def discard(self, row: int) -> None:
        """Forget a row."""
        if row != SKIPPED:
            self._discard(row)
