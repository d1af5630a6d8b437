"""Finding the files of a recording, finished or not, and what they hold that was written to its end."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fastrec._contracts import OUTCOMES
from fastrec._errors import DamagedFileError, RecordingFileError, RecordingNotFoundError
from fastrec.sinks._hdf5_checks import Counters, read_counters
from fastrec.sinks._hdf5_file import map_of
from fastrec.sinks._hdf5_layout import (
    CHECKS,
    COUNTERS,
    COUNTERS_ROW,
    FORMAT,
    LOG,
    MARKS,
    PASSES,
    RECORDS,
    TABLES,
    TRAILER,
    VERSION,
    Bytes,
    SegmentMap,
    read_rows,
)
from fastrec.sinks._hdf5_log import Log, checked
from fastrec.sinks._hdf5_packed import PackedFile
from fastrec.sinks._hdf5_paths import Paths
from fastrec.sinks._hdf5_sessions import Before, SessionNumbers

PIECE = 1 << 16


class ReadFile:
    """One segment, open for reading."""

    def __init__(self, path: str, *, growing: bool, map_path: str = "") -> None:
        self.path = path
        self.growing = growing
        self._file = -1
        # Opened before its map is read: a segment that is finished meanwhile stays the file that the map speaks of.
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise RecordingFileError(f"{path!r} can't be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise RecordingFileError(f"{path!r} can't be read: it is no plain file")
        self.map = _map_beside(path, map_path) if growing else _trailer(self._file) or map_of(path)
        self._packed = PackedFile(path)
        self._check()

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    @property
    def number(self) -> int:
        return self.map.segment

    @property
    def descriptor(self) -> int:
        return self._file

    def rows(self, name: str, first: int, count: int, out: Bytes | None = None) -> Bytes:
        """Rows of a data set, as bytes."""
        if name not in self.map.sets:
            raise DamagedFileError(f"{self.path!r} lacks the data set {name!r}")
        if self.map.sets[name].packed:
            return self._packed.rows(name, first, count, self.map.sets[name].row_bytes, out)
        try:
            return read_rows(self._file, self.map.sets[name], first, count, out)
        except DamagedFileError as error:
            raise DamagedFileError(f"{self.path!r}, {name!r}: {error}") from None
        except OSError as error:
            raise RecordingFileError(f"{self.path!r} can't be read: {error.strerror}") from error

    def table(self, name: str) -> npt.NDArray[Any]:
        """The rows of a table that were written to their end."""
        pieces, total = [], self.map.sets[name].rows
        for first in range(0, total, PIECE):
            piece = self.rows(name, first, min(PIECE, total - first)).view(TABLES[name])
            whole = piece["ok"] == 1
            if whole.all():
                pieces.append(piece)
                continue
            if not self.growing:
                raise DamagedFileError(f"{self.path!r}: a row of {name!r} was not written to its end")
            pieces.append(piece[: int(np.argmin(whole))])
            break
        return np.concatenate(pieces) if pieces else np.empty(0, TABLES[name])

    def counters(self) -> Counters:
        """What its session had counted when it was written last."""
        return read_counters(self.rows(COUNTERS, 0, self.map.sets[COUNTERS].rows))

    def log(self, into: Log) -> int:
        """Take in the log; how many bytes of it count."""
        total = self.map.sets[LOG].rows
        data = self.rows(LOG, 0, min(PIECE, total))
        while self.growing and data.size < total and data[-1]:
            data = np.concatenate([data, self.rows(LOG, data.size, min(2 * data.size, total - data.size))])
        if not self.growing:
            data = self.rows(LOG, 0, total)
        end = into.read(self.number, data)
        if not self.growing and end < total:
            raise DamagedFileError(f"{self.path!r}: the log is damaged after {end} of {total} bytes")
        return end

    def _check(self) -> None:
        rows = {name: dtype.itemsize for name, dtype in (*TABLES.items(), (COUNTERS, COUNTERS_ROW))}
        for name in (LOG, *rows):
            if name not in self.map.sets:
                raise DamagedFileError(f"{self.path!r} lacks the data set {name!r}")
        size = os.fstat(self._file).st_size
        for name, extent in self.map.sets.items():
            if extent.row_bytes != rows.get(name, extent.row_bytes):
                raise DamagedFileError(f"{self.path!r}: the rows of {name!r} have {extent.row_bytes} bytes")
            if extent.packed:
                continue
            chunks = -(-extent.rows // extent.chunk_rows) if extent.chunk_rows > 0 else -1
            if extent.rows < 0 or extent.row_bytes < 0 or chunks > len(extent.offsets) or chunks < 0:
                raise DamagedFileError(f"{self.path!r}: the data set {name!r} makes no sense")
            piece = min(extent.chunk_rows, extent.rows) * extent.row_bytes
            if chunks and not 0 <= min(extent.offsets) <= max(extent.offsets) <= size - piece:
                raise DamagedFileError(f"{self.path!r}: {name!r} lies past the end of the file; was it copied whole?")


def find_files(path: str | os.PathLike[str]) -> list[ReadFile]:
    """The segments of a recording, in order."""
    paths = Paths(path)
    for _ in range(8):
        try:
            found = _opened(paths)
        except FileNotFoundError:  # it was finished, and has another name now
            continue
        if found:
            return found
        if paths.segments():
            raise RecordingNotFoundError(f"the recording at {paths.path!r} has only begun, and nothing was flushed yet")
        break
    raise RecordingNotFoundError(f"there is no recording at {paths.path!r}")


def _opened(paths: Paths) -> list[ReadFile]:
    shown = 0
    if os.path.exists(paths.path):
        shown = -segment_of(paths.path)
        if shown <= 0:
            return [ReadFile(paths.path, growing=False)]
    there = paths.segments()
    found: list[ReadFile] = []
    for number in sorted(there):
        if paths.sealed(number) in there[number]:
            found.append(ReadFile(paths.sealed(number), growing=False))
        elif paths.map(number) in there[number]:
            found.append(ReadFile(paths.growing(number), growing=True, map_path=paths.map(number)))
        if found and [file.number for file in found] != list(range(len(found))):
            raise DamagedFileError(f"segment {len(found) - 1} of {paths.path!r} is missing, or another took its place")
    if len(found) < shown:
        raise DamagedFileError(f"{paths.path!r} shows {shown} segments, and there are {len(found)}")
    return found


def segment_of(path: str) -> int:
    """The number of a file; -n where it holds nothing but shows n others."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise RecordingFileError(f"{path!r} can't be read: {error.strerror}") from error
    try:
        found = _trailer(file) if stat.S_ISREG(os.fstat(file).st_mode) else None
    finally:
        os.close(file)
    if found is None and not os.path.isfile(path):
        raise RecordingFileError(f"{path!r} can't be read: it is no plain file")
    return (found or map_of(path)).segment


def _map_beside(path: str, map_path: str) -> SegmentMap:
    with open(map_path, "rb") as file:
        text = file.read()
    entry = checked(text.rstrip(b"\n"))
    if entry is None:  # damaged; the file itself may well be whole
        return map_of(path)
    found = _decoded(entry)
    if found.version != VERSION:
        raise DamagedFileError(f"{path!r} has version {found.version}; this fastrec reads {VERSION}")
    return found


def _trailer(file: int) -> SegmentMap | None:
    """The map behind the end of a finished file, which spares looking at its structure; None where there is none."""
    size = os.fstat(file).st_size
    last = os.pread(file, TRAILER.size, max(0, size - TRAILER.size))
    if len(last) < TRAILER.size:
        return None
    length, mark = TRAILER.unpack(last)
    if mark.rstrip(b"\0") != FORMAT.encode():
        return None
    start = size - TRAILER.size - length
    entry = checked(os.pread(file, length, start).rstrip(b"\n")) if start >= 0 else None
    if entry is None:
        raise DamagedFileError("the end of the file, which tells what lies where, is damaged")
    found = _decoded(entry)
    return found if found.version == VERSION else None


def _decoded(entry: bytes) -> SegmentMap:
    try:
        return msgspec.json.decode(entry, type=SegmentMap)
    except msgspec.DecodeError as error:
        raise DamagedFileError(f"the map of what lies where makes no sense: {error}") from error


class Contents:
    """The passes, records and steps of all segments, checked to fit together; ``used`` are the rows that count."""

    def __init__(self, files: list[ReadFile]) -> None:
        self.files = {file.number: file for file in files}
        self.log = Log()
        self.used: dict[int, dict[str, int]] = {}
        self.sessions: dict[int, SessionNumbers] = {}
        self.counters: list[Counters] = []
        self.passes, self.records, self.marks = (np.empty(0, TABLES[name]) for name in (PASSES, RECORDS, MARKS))
        began = None
        for session in _sessions(files):
            self.log.begin_session(self._before())
            numbers, tables = self.log.numbers, []
            first = len(self.records)
            for file in session:
                self.sessions[file.number] = numbers
                tables.append(self._read(file))
                tables[-1][0]["first"] += first
                first += len(tables[-1][1])
            self.log.end_session()
            self.counters.append(session[-1].counters())
            began = numbers.began if began is None else began
            passes, records, marks = (_joined(rows) for rows in zip(*tables, strict=True))
            numbers.passes(passes, later=numbers.began - began)
            numbers.records(records)
            numbers.marks(marks)
            self.passes = _joined([self.passes, passes])
            self.records = _joined([self.records, records])
            self.marks = _joined([self.marks, marks])
        self._check()

    def _read(self, file: ReadFile) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """The passes, records and marks of one file, with its own numbers."""
        end = file.log(self.log)
        passes, marks = file.table(PASSES), file.table(MARKS)
        count = int(passes["count"].sum()) if (passes["count"] >= 0).all() else -1
        if count < 0 or not np.array_equal(passes["first"], np.cumsum(passes["count"]) - passes["count"]):
            raise DamagedFileError(f"{file.path!r}: the passes do not have the records one after the other")
        self.used[file.number] = {
            LOG: end,
            PASSES: len(passes),
            RECORDS: count,
            MARKS: len(marks),
            CHECKS: len(file.table(CHECKS)),
            COUNTERS: file.map.sets[COUNTERS].rows,
        }
        return passes, file.rows(RECORDS, 0, count).view(TABLES[RECORDS]), marks

    @property
    def begun(self) -> int:
        """One more than the highest index of a pass that ended."""
        return self._before().passes

    def _before(self) -> Before:
        """How much has been read by now."""
        begun = self.log.numbers.before.passes + (self.counters[-1].begun if self.counters else 0)
        phases, steps = np.unique(self.marks["phase"], return_counts=True)
        return Before(
            passes=max(begun, int(self.passes["pass_index"].max(initial=-1)) + 1),
            marks=len(self.marks),
            data=max((number for _, number in self.log.data), default=-1) + 1,
            steps=dict(zip(phases.tolist(), steps.tolist(), strict=True)),
            entries={
                entry: int(self.passes["entry_pass"][self.passes["entry"] == entry].max()) + 1
                for entry in np.unique(self.passes["entry"]).tolist()
            },
        )

    @property
    def n_empty(self) -> int:
        """How many passes ended well and kept nothing, which have no rows."""
        return sum(counters.empty for counters in self.counters)

    def _check(self) -> None:
        catalog, outcomes = self.log.catalog, self.passes["outcome"]
        if len(outcomes) and outcomes.max() >= len(OUTCOMES):
            raise DamagedFileError(f"a row names the outcome {outcomes.max()}, and there are {len(OUTCOMES)}")
        for variant in catalog.variants.items:
            if not (0 <= variant.site < len(catalog.sites) and 0 <= variant.spec < len(catalog.specs)):
                raise DamagedFileError(f"the variant {variant.label!r} names a site or spec that is not there")
        for key, info in self.log.data.items():
            if min(info.shape, default=0) < 0:
                raise DamagedFileError(f"the data {key} has the shape {info.shape}")


def _joined(tables: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Tables as one; not copied where only one has rows."""
    full = [table for table in tables if len(table)] or tables[:1]
    return full[0] if len(full) == 1 else np.concatenate(full)


def _sessions(files: list[ReadFile]) -> list[list[ReadFile]]:
    """The files by session."""
    found: list[list[ReadFile]] = [[]]
    for file in files:
        before, this = (found[-1] or [file])[-1].map.identity, file.map.identity
        if this.run != before.run or this.session - before.session not in (0, 1):
            raise DamagedFileError(f"{file.path!r} does not go on where the file before it ended")
        if this.session != before.session:
            found.append([])
        found[-1].append(file)
    return found
