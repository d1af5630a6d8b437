"""The passes, records and steps in the files of a recording, checked to fit together.

    reader = IncrementalReader()
    tables = reader.read_new(find_files("run.h5"))      # everything flushed so far
    tables = reader.read_new(files)                     # what came since

Rows come back with the numbers of the whole recording: those of the session are added up (see ``catalog_log``), and
``first`` counts the records of all files. What is read here is small beside the values, which ``source`` reads when
they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fastrec._errors import DamagedFileError
from fastrec.recording._source import OUTCOMES
from fastrec.sinks.hdf5.catalog_log import META, Log, SessionOffset, SessionRemap
from fastrec.sinks.hdf5.checksums import Counters
from fastrec.sinks.hdf5.layout import (
    CHECKED_TABLES,
    CHECKS,
    COUNTERS,
    LOG,
    MARKS,
    PASSES,
    RECORDS,
    TABLES,
    Rows,
    dtype_named,
)
from fastrec.sinks.hdf5.reader import Loss, ReadFile

MAX_ELEMENTS = 1 << 59
"""No tensor has as many, whatever its dtype: torch counts bytes in 63 bits."""

MAX_NAMED = 8
"""How many damaged rows are listed."""


class Tables(NamedTuple):
    """Rows as they stand in files, with the numbers of the whole recording."""

    passes: Rows
    records: Rows
    marks: Rows

    @classmethod
    def concatenate(cls, tables: Sequence[Tables]) -> Tables:
        """The rows of several reads, one after another."""
        empty = cls(*(np.empty(0, TABLES[name]) for name in (PASSES, RECORDS, MARKS)))
        return cls(*(_concatenated(rows) for rows in zip(empty, *tables, strict=True)))

    def head(self, passes: int, records: int, marks: int) -> Tables:
        """The first rows of each."""
        return Tables(self.passes[:passes], self.records[:records], self.marks[:marks])

    def tail(self, passes: int, records: int, marks: int) -> Tables:
        """All but the first rows of each, as if there had been no others."""
        return Tables(self.passes[passes:], self.records[records:], self.marks[marks:]).without_earlier(records)

    def without_earlier(self, records: int) -> Tables:
        """The same rows, where the records before them are not kept."""
        passes = self.passes.copy()
        passes["first"] -= records
        return self._replace(passes=passes)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many passes, records and marks."""
        return len(self.passes), len(self.records), len(self.marks)


def written(rows: Rows) -> Rows:
    """The rows of a table that were written to their end: all of them, but in a damaged file."""
    is_written = rows["ok"] == 1
    return rows if is_written.all() else rows[is_written]


class IncrementalReader:
    """Reads what came to the files of a recording since the last time; it keeps only counts of what it read.

    ``n_read`` are the rows of each file that count, by data set. ``losses`` says what is damaged, and is not in the
    tables. Damage to a finished file is an error, unless it is to ``salvage`` what is left.
    """

    def __init__(self, *, salvage: bool = False, losses: Sequence[Loss] = ()) -> None:
        self.files: dict[int, ReadFile] = {}
        self.log = Log(salvage=salvage)
        self.n_read: dict[int, dict[str, int]] = {}
        self.sessions: dict[int, SessionRemap] = {}
        self.losses = list(losses)
        self.salvage = salvage
        self._counters: dict[int, Counters] = {}
        self._counted: set[int] = set()  # the sessions of which a file has counters
        self._n_records = 0
        self._totals = SessionOffset()
        self._n_checked_metas = 0

    @property
    def n_empty(self) -> int:
        """How many passes ended well and kept nothing, which have no rows."""
        return sum(counters.empty for counters in self._counters.values())

    @property
    def begun(self) -> int:
        """One more than the highest index of a pass that ended."""
        return self._next_session_offset().passes

    def read_new(self, files: Sequence[ReadFile]) -> Tables:
        """What came, of all files of the recording in order."""
        _check_order(files, salvage=self.salvage)
        last_known = max(self.n_read, default=0)  # the files before it are finalized, and do not change
        tables = [self._read_file(file) for file in files if file.number >= last_known]
        self.log.resolve()
        self._check_log()
        return Tables.concatenate(tables)

    def _read_file(self, file: ReadFile) -> Tables:
        session = file.index.identity.session
        if file.number not in self.sessions:
            if session not in self._counters:
                self.log.resolve()
                self.log.begin_session(self._next_session_offset())
                self._counters[session] = Counters()
            self.sessions[file.number] = self.log.remap
        remap = self.sessions[file.number]
        n_read = self.n_read.get(file.number) or dict.fromkeys((LOG, PASSES, RECORDS, MARKS, CHECKS, COUNTERS), 0)
        n_damaged_lines = len(self.log.damage)
        log_end = file.log(self.log, n_read[LOG])
        for _, what in self.log.damage[n_damaged_lines:]:
            self._note(file, LOG, what)
        checks = written(file.table(CHECKS, n_read[CHECKS]))
        passes = self._rows_of(file, PASSES, n_read[PASSES], checks)
        marks = self._rows_of(file, MARKS, n_read[MARKS], checks)
        n_passes, n_marks = len(passes), len(marks)
        passes, marks = self._good(file, PASSES, passes, remap), self._good(file, MARKS, marks, remap)
        passes, records, records_end = self._records_of(file, passes, n_read[RECORDS], n_passes)
        if self.salvage:
            passes, records = self._without_unknown(file, passes, records, remap)
        passes["first"] += self._n_records
        remap.passes(passes, seconds_later=remap.began - self.sessions[min(self.sessions)].began)
        remap.records(records)
        remap.marks(marks)
        self.files[file.number] = file
        self.n_read[file.number] = {
            LOG: log_end,
            PASSES: n_read[PASSES] + n_passes,
            RECORDS: records_end,
            MARKS: n_read[MARKS] + n_marks,
            CHECKS: n_read[CHECKS] + len(checks),
            COUNTERS: file.index.sets[COUNTERS].rows,
        }
        counters = file.counters()
        # They are there from the moment in which a file is; earlier versions began further files of a session without.
        if counters is None and (session not in self._counted or file.has_counters()):
            self._note(file, COUNTERS, "no row can be read, so it is not known how many passes kept nothing")
        if counters is not None:
            self._counters[session] = counters
            self._counted.add(session)
        self._n_records += len(records)
        self._count(passes, marks)
        return Tables(passes, records, marks)

    def _rows_of(self, file: ReadFile, name: str, first: int, checks: Rows) -> Rows:
        """New rows of a table: as many as there are, or as a checksum says that there are."""
        of_table = checks[checks["data"] == CHECKED_TABLES[name]]
        return file.table(name, first, promised=int((of_table["row"] + of_table["count"]).max(initial=0)))

    def _good(self, file: ReadFile, name: str, rows: Rows, remap: SessionRemap) -> Rows:
        """The rows that were written to their end and, where damage is skipped, that make sense."""
        is_good = rows["ok"] == 1
        if self.salvage:
            is_good &= remap.is_known(rows, "phase")
            if name == PASSES:
                is_good &= remap.is_known(rows, "entry") & (rows["outcome"] < len(OUTCOMES))
        n_bad = len(rows) - int(is_good.sum())
        if n_bad:
            numbers = np.flatnonzero(~is_good)[:MAX_NAMED].tolist()
            self._note(file, name, f"{n_bad} of {len(rows)} rows can't be read, of them {', '.join(map(str, numbers))}")
        if (
            name == PASSES
            and not self.salvage
            and len(rows)
            and rows["outcome"][is_good].max(initial=0) >= len(OUTCOMES)
        ):
            raise DamagedFileError(f"{file.path!r}: a pass has an outcome that does not exist")
        return rows[is_good] if n_bad else rows

    def _records_of(self, file: ReadFile, passes: Rows, first: int, n_passes: int) -> tuple[Rows, Rows, int]:
        """Passes, with their records counted from a row on; the records; and the row after the last of them.

        Records lie one after another, but for those of passes whose rows are damaged.
        """
        room = file.index.sets[RECORDS].rows
        counts, firsts = passes["count"], passes["first"]
        # Each count by itself first: the sum of hostile ones may well look right.
        fits = (counts >= 0) & (counts <= room) & (firsts >= first) & (firsts <= room - np.clip(counts, 0, room))
        ends = np.where(fits, firsts + np.clip(counts, 0, room), 0)
        after = np.maximum.accumulate(np.concatenate([[first], ends]))[:-1]
        may_have_gaps = len(passes) < n_passes or self.salvage
        fits &= (firsts >= after) if may_have_gaps else (firsts == after)
        if not fits.all():
            if not self.salvage:
                raise DamagedFileError(f"{file.path!r}: the passes do not have the records one after another")
            self._note(file, PASSES, f"{int((~fits).sum())} passes of which it is not known which records they have")
            passes, ends = passes[fits], ends[fits]
        end = int(ends.max(initial=first))
        records = file.rows(RECORDS, first, end - first).view(TABLES[RECORDS])
        passes["first"] -= first
        return passes, records, end

    def _without_unknown(self, file: ReadFile, passes: Rows, records: Rows, remap: SessionRemap) -> tuple[Rows, Rows]:
        """Passes and records without records of which the log does not say what they are, or that no pass has."""
        is_good = remap.is_known(records, META)
        of_pass = np.zeros(len(records) + 1, np.int64)
        np.add.at(of_pass, passes["first"], 1)
        np.add.at(of_pass, passes["first"] + passes["count"], -1)
        has_pass = np.cumsum(of_pass)[:-1] > 0
        n_bad = int((has_pass & ~is_good).sum())
        if n_bad:
            self._note(file, RECORDS, f"{n_bad} of {len(records)} rows make no sense")
        is_good &= has_pass
        before = np.concatenate([[0], np.cumsum(is_good)])
        ends = before[passes["first"] + passes["count"]]
        passes["first"] = before[passes["first"]]
        passes["count"] = ends - passes["first"]
        return passes, records[is_good]

    def _note(self, file: ReadFile, data_set: str, what: str) -> None:
        """Note what is lost of a file; an error where it is a finished one, and nobody asked for the rest."""
        loss = Loss(file.path, data_set, what)
        if not (file.in_progress or self.salvage):
            raise DamagedFileError(f"{loss}; fastrec.load(..., salvage=True) reads the rest")
        self.losses.append(loss)

    def _count(self, passes: Rows, marks: Rows) -> None:
        totals = self._totals
        steps, entries = dict(totals.steps), dict(totals.entries)
        for phase, count in zip(*np.unique(marks["phase"], return_counts=True), strict=True):
            steps[int(phase)] = steps.get(int(phase), 0) + int(count)
        for entry in np.unique(passes["entry"]).tolist():
            highest = int(passes["entry_pass"][passes["entry"] == entry].max())
            entries[entry] = max(entries.get(entry, 0), highest + 1)
        highest = int(passes["pass_index"].max(initial=-1))
        self._totals = SessionOffset(max(totals.passes, highest + 1), totals.marks + len(marks), 0, steps, entries)

    def _next_session_offset(self) -> SessionOffset:
        """What a session that begins now has before it."""
        totals = self._totals
        begun = self.log.remap.offset.passes + (self._counters[max(self._counters)].begun if self._counters else 0)
        n_data = max((number for _, number in self.log.data), default=-1) + 1
        return SessionOffset(max(begun, totals.passes), totals.marks, n_data, totals.steps, totals.entries)

    def _check_log(self) -> None:
        catalog = self.log.catalog
        for meta in catalog.metas.items[self._n_checked_metas :]:
            dtype_named(meta.dtype)
            if not (0 <= meta.site < len(catalog.sites) and 0 <= meta.spec < len(catalog.specs)):
                raise DamagedFileError(f"the record meta {meta.label!r} names a site or spec that does not exist")
            if len(meta.stack_passes) != len(catalog.sites[meta.site].frames):
                raise DamagedFileError(f"the record meta {meta.label!r} has other modules on its stack than its site")
        self._n_checked_metas = len(catalog.metas)
        for key, info in self.log.data.items():
            # Also a shape that has no elements has to be one that a tensor can have.
            if min(info.shape, default=0) < 0 or math.prod(max(1, size) for size in info.shape) >= MAX_ELEMENTS:
                raise DamagedFileError(f"the data {key} has the shape {info.shape}")


class Contents:
    """What the files of a recording held at one moment, of the rows from ``start`` on.

    ``begun`` is one more than the highest index of a pass that ended.
    """

    def __init__(self, reader: IncrementalReader, tables: Tables, start: tuple[int, int, int] = (0, 0, 0)) -> None:
        self.files: Mapping[int, ReadFile] = dict(reader.files)
        self.log = reader.log
        self.n_read = dict(reader.n_read)
        self.sessions = dict(reader.sessions)
        self.start = start
        self.use(tables)
        self.salvaged = reader.salvage
        self.losses = tuple(reader.losses)
        self.n_empty = reader.n_empty
        self.begun = reader.begun

    def use(self, tables: Tables) -> None:
        """Hold these tables."""
        self.tables = tables
        self.passes, self.records, self.marks = tables


def read_contents(files: Sequence[ReadFile], *, salvage: bool = False, losses: Sequence[Loss] = ()) -> Contents:
    """Everything that files hold so far; to ``salvage`` what is left of damaged ones, ``losses`` says what is not."""
    reader = IncrementalReader(salvage=salvage, losses=losses)
    return Contents(reader, reader.read_new(files))


def _check_order(files: Sequence[ReadFile], *, salvage: bool) -> None:
    for earlier, file in zip(files, files[1:], strict=False):
        last, identity = earlier.index.identity, file.index.identity
        n_sessions = identity.session - last.session
        if identity.run != last.run or n_sessions < 0 or (n_sessions > 1 and not salvage):
            raise DamagedFileError(f"{file.path!r} does not go on where the file before it ended")


def _concatenated(tables: Sequence[Rows]) -> Rows:
    """Rows as one table; not copied where only one table has some."""
    filled = [rows for rows in tables if len(rows)] or tables[:1]
    return filled[0] if len(filled) == 1 else np.concatenate(filled)
