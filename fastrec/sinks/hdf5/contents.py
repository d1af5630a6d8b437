"""The passes, records and steps in the files of a recording, checked to fit together.

    reader = IncrementalReader()
    tables = reader.read_new(find_files("run.h5"))      # everything flushed so far
    tables = reader.read_new(files)                     # what came since

Rows come back with the numbers of the whole recording: those of the session are added up (see ``catalog_log``), and
``first`` counts the records of all files. What is read here is small beside the values, which ``source`` reads when
they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fastrec._errors import DamagedFileError
from fastrec.recording._source import OUTCOMES
from fastrec.sinks.hdf5.catalog_log import Log, SessionOffset, SessionRemap
from fastrec.sinks.hdf5.checksums import Counters
from fastrec.sinks.hdf5.layout import CHECKS, COUNTERS, LOG, MARKS, PASSES, RECORDS, TABLES, Rows, dtype_named
from fastrec.sinks.hdf5.reader import ReadFile


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


class IncrementalReader:
    """Reads what came to the files of a recording since the last time; it keeps only counts of what it read.

    ``n_read`` are the rows of each file that count, by data set.
    """

    def __init__(self) -> None:
        self.files: dict[int, ReadFile] = {}
        self.log = Log()
        self.n_read: dict[int, dict[str, int]] = {}
        self.sessions: dict[int, SessionRemap] = {}
        self._counters: dict[int, Counters] = {}
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
        _check_order(files)
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
        log_end = file.log(self.log, n_read[LOG])
        passes, marks = file.table(PASSES, n_read[PASSES]), file.table(MARKS, n_read[MARKS])
        records = self._records_of(file, passes, n_read[RECORDS])
        passes["first"] += self._n_records - n_read[RECORDS]
        remap.passes(passes, seconds_later=remap.began - self.sessions[min(self.sessions)].began)
        remap.records(records)
        remap.marks(marks)
        if len(passes) and passes["outcome"].max() >= len(OUTCOMES):
            raise DamagedFileError(f"{file.path!r}: a pass has an outcome that does not exist")
        self.files[file.number] = file
        self.n_read[file.number] = {
            LOG: log_end,
            PASSES: n_read[PASSES] + len(passes),
            RECORDS: n_read[RECORDS] + len(records),
            MARKS: n_read[MARKS] + len(marks),
            CHECKS: n_read[CHECKS] + len(file.table(CHECKS, n_read[CHECKS])),
            COUNTERS: file.index.sets[COUNTERS].rows,
        }
        # A file that has only begun has none yet; then those of the session's file before it count.
        self._counters[session] = file.counters() or self._counters[session]
        self._n_records += len(records)
        self._count(passes, marks)
        return Tables(passes, records, marks)

    def _records_of(self, file: ReadFile, passes: Rows, first: int) -> Rows:
        """The records of passes, which lie one after another from a row on."""
        room = file.index.sets[RECORDS].rows - first
        counts = passes["count"]
        # Each count by itself first: the sum of hostile ones may well look right.
        fits = len(passes) == 0 or 0 <= counts.min() <= counts.max() <= room
        if not fits or not np.array_equal(passes["first"], first + np.cumsum(counts) - counts):
            raise DamagedFileError(f"{file.path!r}: the passes do not have the records one after another")
        return file.rows(RECORDS, first, int(counts.sum())).view(TABLES[RECORDS])

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
            if min(info.shape, default=0) < 0:
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
        self.tables = tables
        self.start = start
        self.passes, self.records, self.marks = tables
        self.n_empty = reader.n_empty
        self.begun = reader.begun


def read_contents(files: Sequence[ReadFile]) -> Contents:
    """Everything that files hold so far."""
    reader = IncrementalReader()
    return Contents(reader, reader.read_new(files))


def _check_order(files: Sequence[ReadFile]) -> None:
    for earlier, file in zip(files, files[1:], strict=False):
        last, identity = earlier.index.identity, file.index.identity
        if identity.run != last.run or identity.session - last.session not in (0, 1):
            raise DamagedFileError(f"{file.path!r} does not go on where the file before it ended")


def _concatenated(tables: Sequence[Rows]) -> Rows:
    """Rows as one table; not copied where only one table has some."""
    filled = [rows for rows in tables if len(rows)] or tables[:1]
    return filled[0] if len(filled) == 1 else np.concatenate(filled)
