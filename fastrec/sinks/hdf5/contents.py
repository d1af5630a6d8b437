"""The passes, records and steps that the files of a recording hold, checked to fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastrec._errors import DamagedFileError
from fastrec.recording._source import OUTCOMES
from fastrec.sinks.hdf5.catalog_log import Log, SessionOffset, SessionRemap, torch_dtype_of
from fastrec.sinks.hdf5.checksums import Counters
from fastrec.sinks.hdf5.layout import CHECKS, COUNTERS, LOG, MARKS, PASSES, RECORDS, TABLES
from fastrec.sinks.hdf5.reader import ReadFile

Rows = npt.NDArray[Any]


class Tables(NamedTuple):
    """Rows as they stand in files, with the numbers of the whole recording."""

    passes: Rows
    records: Rows
    marks: Rows

    @classmethod
    def joined(cls, tables: Sequence[Tables]) -> Tables:
        """Those of several looks, one after the other."""
        empty = cls(*(np.empty(0, TABLES[name]) for name in (PASSES, RECORDS, MARKS)))
        return cls(*(_joined(rows) for rows in zip(empty, *tables, strict=True)))

    def first(self, passes: int, records: int, marks: int) -> Tables:
        """So many from the beginning."""
        return Tables(self.passes[:passes], self.records[:records], self.marks[:marks])

    def since(self, passes: int, records: int, marks: int) -> Tables:
        """All but so many from the beginning, as if there had been no others."""
        return Tables(self.passes[passes:], self.records[records:], self.marks[marks:]).moved(records)

    def moved(self, records: int) -> Tables:
        """The same after so many records before them were let go."""
        passes = self.passes.copy()
        passes["first"] -= records
        return self._replace(passes=passes)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many passes, records and marks."""
        return len(self.passes), len(self.records), len(self.marks)


class IncrementalReader:
    """Reads what came to the files of a recording since the last look; it keeps only counts of what it read.

    ``used`` are the rows of each file that count.
    """

    def __init__(self) -> None:
        self.files: dict[int, ReadFile] = {}
        self.log = Log()
        self.used: dict[int, dict[str, int]] = {}
        self.sessions: dict[int, SessionRemap] = {}
        self.counters: dict[int, Counters] = {}
        self._records = 0
        self._before = SessionOffset()
        self._metas = 0

    @property
    def n_empty(self) -> int:
        """How many passes ended well and kept nothing, which have no rows."""
        return sum(counters.empty for counters in self.counters.values())

    @property
    def begun(self) -> int:
        """One more than the highest index of a pass that ended."""
        return self._before_session().passes

    def more(self, files: Sequence[ReadFile]) -> Tables:
        """What came, of all files from the first one on."""
        _check_order(files)
        # What lies before the last file that is known has not changed.
        known = max(self.used, default=0)
        found = [self._more(file) for file in files if file.number >= known]
        self.log.settle()
        self._check_log()
        return Tables.joined(found)

    def _more(self, file: ReadFile) -> Tables:
        session = file.map.identity.session
        if file.number not in self.sessions:
            if session not in self.counters:
                self.log.settle()
                self.log.begin_session(self._before_session())
                self.counters[session] = Counters()
            self.sessions[file.number] = self.log.numbers
        numbers = self.sessions[file.number]
        at = self.used.get(file.number) or dict.fromkeys((LOG, PASSES, RECORDS, MARKS, CHECKS, COUNTERS), 0)
        end = file.log(self.log, at[LOG])
        passes, marks = file.table(PASSES, at[PASSES]), file.table(MARKS, at[MARKS])
        room = file.map.sets[RECORDS].rows - at[RECORDS]
        whole = len(passes) == 0 or 0 <= passes["count"].min() <= passes["count"].max() <= room
        count = int(passes["count"].sum()) if whole else -1
        if count < 0 or not np.array_equal(passes["first"], at[RECORDS] + np.cumsum(passes["count"]) - passes["count"]):
            raise DamagedFileError(f"{file.path!r}: the passes do not have the records one after the other")
        records = file.rows(RECORDS, at[RECORDS], count).view(TABLES[RECORDS])
        passes["first"] += self._records - at[RECORDS]
        began = self.sessions[min(self.sessions)].began
        numbers.passes(passes, later=numbers.began - began)
        numbers.records(records)
        numbers.marks(marks)
        if len(passes) and passes["outcome"].max() >= len(OUTCOMES):
            raise DamagedFileError(f"{file.path!r}: a row names an outcome that there is not")
        self.files[file.number] = file
        self.used[file.number] = {
            LOG: end,
            PASSES: at[PASSES] + len(passes),
            RECORDS: at[RECORDS] + count,
            MARKS: at[MARKS] + len(marks),
            CHECKS: at[CHECKS] + len(file.table(CHECKS, at[CHECKS])),
            COUNTERS: file.map.sets[COUNTERS].rows,
        }
        self.counters[session] = file.counters()
        self._records += count
        self._tally(passes, marks)
        return Tables(passes, records, marks)

    def _tally(self, passes: Rows, marks: Rows) -> None:
        before = self._before
        steps, entries = dict(before.steps), dict(before.entries)
        for phase, count in zip(*np.unique(marks["phase"], return_counts=True), strict=True):
            steps[int(phase)] = steps.get(int(phase), 0) + int(count)
        for entry in np.unique(passes["entry"]).tolist():
            highest = int(passes["entry_pass"][passes["entry"] == entry].max())
            entries[entry] = max(entries.get(entry, 0), highest + 1)
        highest = int(passes["pass_index"].max(initial=-1))
        self._before = SessionOffset(max(before.passes, highest + 1), before.marks + len(marks), 0, steps, entries)

    def _before_session(self) -> SessionOffset:
        """How much has been read by now."""
        found = self._before
        begun = self.log.numbers.before.passes + (self.counters[max(self.counters)].begun if self.counters else 0)
        data = max((number for _, number in self.log.data), default=-1) + 1
        return SessionOffset(max(begun, found.passes), found.marks, data, found.steps, found.entries)

    def _check_log(self) -> None:
        catalog = self.log.catalog
        for meta in catalog.metas.items[self._metas :]:
            torch_dtype_of(meta.dtype)
            if not (0 <= meta.site < len(catalog.sites) and 0 <= meta.spec < len(catalog.specs)):
                raise DamagedFileError(f"the record meta {meta.label!r} names a site or spec that is not there")
            if len(meta.stack_passes) != len(catalog.sites[meta.site].frames):
                raise DamagedFileError(f"the record meta {meta.label!r} runs in other modules than its site")
        self._metas = len(catalog.metas)
        for key, info in self.log.data.items():
            if min(info.shape, default=0) < 0:
                raise DamagedFileError(f"the data {key} has the shape {info.shape}")


class Contents:
    """What the files of a recording held at one moment, of the rows from ``start`` on.

    ``begun`` is one more than the highest index of a pass that ended.
    """

    def __init__(self, tail: IncrementalReader, tables: Tables, start: tuple[int, int, int] = (0, 0, 0)) -> None:
        self.files: Mapping[int, ReadFile] = dict(tail.files)
        self.log = tail.log
        self.used = dict(tail.used)
        self.sessions = dict(tail.sessions)
        self.tables = tables
        self.start = start
        self.passes, self.records, self.marks = tables
        self.n_empty = tail.n_empty
        self.begun = tail.begun


def read_contents(files: Sequence[ReadFile]) -> Contents:
    """All that files hold by now."""
    tail = IncrementalReader()
    return Contents(tail, tail.more(files))


def _check_order(files: Sequence[ReadFile]) -> None:
    for before, file in zip(files, files[1:], strict=False):
        last, this = before.map.identity, file.map.identity
        if this.run != last.run or this.session - last.session not in (0, 1):
            raise DamagedFileError(f"{file.path!r} does not go on where the file before it ended")


def _joined(rows: Sequence[Rows]) -> Rows:
    """Rows as one table; not copied where only one has some."""
    full = [some for some in rows if len(some)] or rows[:1]
    return full[0] if len(full) == 1 else np.concatenate(full)
