"""Reading one segment, and finding the segments of a recording, finished or not.

    for file in find_files("run.h5"):
        passes = file.table(PASSES)                      # those that were written to their end
        values = file.rows("data/relu", 0, 100)          # bytes

A segment is read with plain ``os.preadv`` at the offsets in its index, which is the same for one that grows, one whose
process was killed and one that is finished. HDF5 takes part only in what is compressed, and where the index is lost.

Files may come from anywhere, and HDF5 believes what a file says of itself. So all that an index claims is checked
against the size of the file before anything is read. Where HDF5 has to find the data sets, it opens the file in a
separate process first (see ``probe``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import msgspec
import numpy as np
from h5py import h5s

from fastrec._errors import DamagedFileError, FastrecError, RecordingFileError, RecordingNotFoundError
from fastrec._torch.process import FORKS
from fastrec.sinks.hdf5.catalog_log import Log
from fastrec.sinks.hdf5.checksums import Counters, read_counters, strip_checksum
from fastrec.sinks.hdf5.layout import (
    COUNTERS,
    COUNTERS_ROW,
    LOG,
    MERGED,
    OVERFLOW,
    PASSES,
    TABLES,
    VERSION,
    Bytes,
    Identity,
    Rows,
    SegmentIndex,
    read_rows,
)
from fastrec.sinks.hdf5.open_files import OPEN_FILES
from fastrec.sinks.hdf5.paths import SUFFIXES, Paths, open_regular
from fastrec.sinks.hdf5.probe import probe_in_subprocess
from fastrec.sinks.hdf5.structure import (
    MAX_INDEX_BYTES,
    decode_index,
    load_plugins,
    open_verified,
    plain_dataset,
    read_index,
    read_trailer,
)

MIN_READ_ROWS, MAX_READ_ROWS = 1 << 10, 1 << 16
"""How many rows of a table, or bytes of the log, are read at first and at most: it may end at any of them."""

MAX_LINE_BYTES = 64 << 20
"""No line of a log is longer. A file of holes may claim any length, and reading it would take memory."""

MAX_SEGMENTS = 100_000
"""Their names have five digits."""

MAX_FIND_ATTEMPTS = 8
"""A segment that is finalized between looking for it and opening it has another name, so it is looked for again."""


class Loss(msgspec.Struct, frozen=True):
    """Damage to a file, in which data set if it is one."""

    file: str
    data_set: str
    what: str

    def __str__(self) -> str:
        return f"{self.file!r} is damaged{f' in {self.data_set!r}' if self.data_set else ''}: {self.what}"


class ReadFile:
    """One segment, open for reading; ``in_progress`` while it grows, and for ever if its process was killed."""

    def __init__(self, path: str, *, map_path: str | None = None) -> None:
        self.path = path
        self.in_progress = map_path is not None
        # Opened before the index is read: if the segment is finalized meanwhile, this is still the file that the index
        # is of. It stays open, as its name will be gone; a finished one only where there are not too many.
        self._descriptor = OPEN_FILES.open(path, stays_open=self.in_progress)
        with self._descriptor as descriptor:
            if map_path is not None:
                self.index = _index_beside(path, map_path)
            else:
                self.index = read_trailer(descriptor) or _index_by_hdf5(path)
            self._check_index(os.fstat(descriptor).st_size)
        self._compressed = CompressedFile(path)

    def __reduce__(self) -> Any:
        raise TypeError("an open file can't be copied to another process; the recording opens its files again")

    @property
    def number(self) -> int:
        return self.index.segment

    def rows(self, name: str, first: int, count: int, out: Bytes | None = None) -> Bytes:
        """Rows of a data set, as bytes."""
        extent = self.index.sets.get(name)
        if extent is None:
            raise DamagedFileError(f"{self.path!r} lacks the data set {name!r}")
        if extent.compressed:
            return self._compressed.rows(name, first, count, extent.row_bytes, out)
        try:
            with self._descriptor as descriptor:
                return read_rows(descriptor, extent, first, count, out)
        except RecordingFileError:
            raise
        except DamagedFileError as error:
            raise DamagedFileError(f"{self.path!r}, {name!r}: {error}") from None
        except OSError as error:
            raise RecordingFileError(f"{self.path!r} can't be read: {error.strerror}") from error

    def table(self, name: str, first: int = 0, promised: int = 0) -> Rows:
        """The rows of a table from one on, up to the last that was written.

        Rows before it of which ``ok`` is not 1 are damaged. Of a growing file it is not known how many rows were
        written; a checksum may promise that there are some up to a row.
        """
        pieces, total, step = [np.empty(0, TABLES[name])], self.index.sets[name].rows, MIN_READ_ROWS
        start, promised = first, min(promised, total)
        while start < total:
            piece = self.rows(name, start, min(step, total - start)).view(TABLES[name])
            is_written = piece["ok"] == 1
            if self.in_progress and not is_written.all():
                n_written = int(np.flatnonzero(is_written)[-1]) + 1 if is_written.any() else 0
                n_written = min(len(piece), max(n_written, promised - start))
                if not is_written[:n_written].all():
                    # Read again: a row that was written meanwhile is no damage, even if a later one was seen before.
                    piece = self.rows(name, start, n_written).view(TABLES[name])
                pieces.append(piece[:n_written])
                if n_written < len(is_written):
                    break
            else:
                pieces.append(piece)
            start, step = start + len(piece), min(4 * step, MAX_READ_ROWS)
        return np.concatenate(pieces)

    def counters(self) -> Counters | None:
        """What its session had counted when it was written last; None where that is damaged."""
        return read_counters(self.rows(COUNTERS, 0, self.index.sets[COUNTERS].rows))

    def has_counters(self) -> bool:
        """Whether counters were ever written, whatever became of them."""
        return bool(self.rows(COUNTERS, 0, self.index.sets[COUNTERS].rows).any())

    def log(self, into: Log, first: int = 0) -> int:
        """Take in the log from a byte on; where its last whole line ends."""
        total, step = self.index.sets[LOG].rows, MIN_READ_ROWS
        end, rest = first, b""
        # In pieces: nothing says how long a growing one is so far, and a file of holes may say anything.
        while end + len(rest) < total:
            data = rest + self.rows(LOG, end + len(rest), min(step, total - end - len(rest))).tobytes()
            n_read = into.read(self.number, data)
            end, rest = end + n_read, data[n_read:]
            if b"\n" in rest:
                # Read again: what was written meanwhile is no damage.
                rest = self.rows(LOG, end, len(rest)).tobytes()
                n_read = into.read(self.number, rest, skips_damage=True)
                end, rest = end + n_read, rest[n_read:]
            if rest.endswith(b"\0") or len(rest) > MAX_LINE_BYTES:  # no whole line will come of it
                break
            step = min(max(MAX_READ_ROWS, 4 * len(rest)), MAX_LINE_BYTES)
        if not self.in_progress and end < total:
            into.note_damage(self.number, total - end)
        return end

    def _check_index(self, size: int) -> None:
        """Check that the data sets which every segment has are there, and that all of them lie inside of the file."""
        row_bytes = {name: dtype.itemsize for name, dtype in (*TABLES.items(), (COUNTERS, COUNTERS_ROW))}
        row_bytes |= {LOG: 1, OVERFLOW: 1}
        for name in row_bytes:
            if name not in self.index.sets:
                raise DamagedFileError(f"{self.path!r} lacks the data set {name!r}")
        for name, extent in self.index.sets.items():
            if extent.row_bytes != row_bytes.get(name, extent.row_bytes):
                raise DamagedFileError(f"{self.path!r}: the rows of {name!r} have {extent.row_bytes} bytes")
            if extent.compressed:
                continue
            n_chunks = -(-extent.rows // extent.chunk_rows) if extent.chunk_rows > 0 else -1
            if extent.rows < 0 or extent.row_bytes < 0 or not 0 <= n_chunks <= len(extent.offsets):
                raise DamagedFileError(f"{self.path!r}: the data set {name!r} makes no sense")
            chunk_bytes = min(extent.chunk_rows, extent.rows) * extent.row_bytes
            if n_chunks and not 0 <= min(extent.offsets) <= max(extent.offsets) <= size - chunk_bytes:
                raise DamagedFileError(f"{self.path!r}: {name!r} lies past the end of the file; was it copied whole?")
        sizes = [extent.rows * extent.row_bytes for extent in self.index.sets.values() if not extent.compressed]
        if sum(sizes) > size:  # chunks that lie in the same place
            raise DamagedFileError(f"{self.path!r}: the data sets take more room than the file has")


class CompressedFile:
    """A finished file whose data sets are compressed, opened by HDF5 when the first of them is read."""

    CACHE_BYTES = 16 << 20

    def __init__(self, path: str) -> None:
        self._path = path
        self._absolute_path = os.path.abspath(path)  # the process may be in another folder by then
        self._lock = threading.Lock()
        self._file: Any = None
        self._data_sets: dict[str, Any] = {}
        self._forks = FORKS.count

    def rows(self, name: str, first: int, count: int, row_bytes: int, out: Bytes | None) -> Bytes:
        """Rows of a data set, as the bytes of its type on the disk."""
        with self._lock:
            try:
                data_set = self._data_set(name, row_bytes)
                space = data_set.get_space()
                shape = space.get_simple_extent_dims()
                if first < 0 or count < 0 or first + count > shape[0]:
                    raise DamagedFileError(f"rows {first} to {first + count} were asked for, but there are {shape[0]}")
                data = np.empty(count * row_bytes, np.uint8) if out is None else out
                if data.size:
                    space.select_hyperslab((first, *(0 for _ in shape[1:])), (count, *shape[1:]))
                    data_set.read(h5s.create_simple((count, *shape[1:])), space, data, data_set.get_type())
            except FastrecError:
                raise
            except MemoryError as error:
                raise RecordingFileError(f"{self._path!r}, {name!r}: there is no memory for {count} rows") from error
            except (OSError, KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
                load_plugins(f"{self._path!r} ({error})")
                raise DamagedFileError(f"{self._path!r}, {name!r} can't be read: {error}") from error
        return data

    def _data_set(self, name: str, row_bytes: int) -> Any:
        if self._file is None or self._forks != FORKS.count:  # a forked child shares HDF5's handle, and its position
            if find_spec("hdf5plugin") is not None:
                load_plugins("reading")
            self._file = open_verified(self._absolute_path, rdcc_nbytes=self.CACHE_BYTES)
            self._forks = FORKS.count
            self._data_sets = {}
        if name not in self._data_sets:
            # HDF5 writes as many bytes into the buffer as the data set's own type says, whatever the index says.
            self._data_sets[name] = plain_dataset(self._file, name, row_bytes)
        return self._data_sets[name]


def paths_of(path: str | os.PathLike[str]) -> Paths:
    """The paths of a recording's files; where only a link to it has this path, those of the recording itself."""
    paths = Paths(path)
    if os.path.islink(paths.path) and not paths.segments():
        target = os.path.realpath(paths.path)
        if os.path.splitext(target)[1] in SUFFIXES:  # else a store of files has names of its own for their content
            return Paths(target)
    return paths


def find_files(path: str | os.PathLike[str], *, losses: list[Loss] | None = None) -> list[ReadFile]:
    """The segments of a recording, in order; with ``losses``, to which damaged ones are added, only the others."""
    paths = paths_of(path)
    for _ in range(MAX_FIND_ATTEMPTS):
        try:
            files = _open_segments(paths) if losses is None else _open_undamaged(paths, losses)
        except FileNotFoundError:  # finalized just now
            continue
        if files:
            return files
        if paths.segments():
            raise RecordingNotFoundError(f"the recording at {paths.path!r} has only begun, and nothing was flushed yet")
        break
    raise RecordingNotFoundError(f"there is no recording at {paths.path!r}")


def _open_segments(paths: Paths) -> list[ReadFile]:
    n_shown = 0
    if os.path.lexists(paths.path):
        n_shown = -segment_of(paths.path)
        if n_shown <= 0:
            return [ReadFile(paths.path)]
    _check_no_merge(paths, n_shown)
    files: list[ReadFile] = []
    for segment in _segment_paths(paths):
        files.append(ReadFile(segment.path, map_path=segment.map_path))
        if [file.number for file in files] != list(range(len(files))):
            raise DamagedFileError(f"segment {len(files) - 1} of {paths.path!r} is missing, or another took its place")
    if len(files) < n_shown:
        raise DamagedFileError(f"{paths.path!r} shows {n_shown} segments, but there are {len(files)}")
    return files


def _open_undamaged(paths: Paths, losses: list[Loss]) -> list[ReadFile]:
    losses.clear()
    n_shown = 0
    try:
        n_shown = -segment_of(paths.path)
    except FileNotFoundError:
        pass
    except FastrecError as error:
        if not paths.segments():
            raise
        losses.append(Loss(paths.path, "", f"it does not say what it shows: {error}"))
    else:
        if n_shown <= 0:
            return [ReadFile(paths.path)]
    _check_no_merge(paths, n_shown)
    files, segments = list[ReadFile](), _segment_paths(paths)
    for segment in segments:
        try:
            file = ReadFile(segment.path, map_path=segment.map_path)
        except (DamagedFileError, RecordingFileError) as error:
            losses.append(Loss(segment.path, "", f"nothing in it can be read: {error}"))
            continue
        if file.number == segment.number:
            files.append(file)
        else:
            losses.append(Loss(segment.path, "", f"it is another file, segment {file.number}"))
    if segments and not files:
        raise DamagedFileError(str(losses[-1]))
    losses += _missing(paths, n_shown, segments)
    return files


class _SegmentPath(NamedTuple):
    """Where a segment is, and its map where it is in progress; an empty map path where only HDF5 knows what it is."""

    number: int
    path: str
    map_path: str | None


def _missing(paths: Paths, n_shown: int, segments: Sequence[_SegmentPath]) -> list[Loss]:
    """The segments of which nothing is there."""
    existing = {segment.number for segment in segments}
    count = min(max(n_shown, max(existing, default=-1) + 1), MAX_SEGMENTS)
    return [Loss(paths.finalized(number), "", "it is missing") for number in range(count) if number not in existing]


def _segment_paths(paths: Paths) -> list[_SegmentPath]:
    """The segments that count, in order."""
    existing, segments = paths.segments(), list[_SegmentPath]()
    for number in sorted(existing):
        path, map_path = paths.in_progress(number), paths.map(number)
        if paths.finalized(number) in existing[number]:
            segments.append(_SegmentPath(number, paths.finalized(number), None))
        elif map_path in existing[number]:
            segments.append(_SegmentPath(number, path, map_path))
        elif path in existing[number] and _lost_its_map(path):
            segments.append(_SegmentPath(number, path, ""))
    return segments


def _lost_its_map(path: str) -> bool:
    """Whether a file in progress without a map holds passes: most often it has only begun, and holds nothing yet."""
    try:
        return os.path.getsize(path) > 0 and len(ReadFile(path, map_path="").table(PASSES)) > 0
    except (FastrecError, OSError):  # it is being made at this moment, or its process was killed at such a moment
        return False


def _check_no_merge(paths: Paths, n_shown: int) -> None:
    if n_shown == -MERGED:
        raise DamagedFileError(
            f"{paths.path!r} shows other recordings, which is not possible here; name one of those, or copy all of "
            "them to one file with fastrec.files.repack"
        )


def segment_of(path: str) -> int:
    """The number of a file among the segments; -n where it has no rows but shows n others."""
    return identity_of(path).segment


def identity_of(path: str) -> Identity:
    """Which recording a finished file is part of."""
    descriptor = open_regular(path)
    try:
        index = read_trailer(descriptor)
    finally:
        os.close(descriptor)
    return (index or _index_by_hdf5(path)).identity


def _index_beside(path: str, map_path: str) -> SegmentIndex:
    if not map_path:
        return _index_by_hdf5(path)
    with open(open_regular(map_path), "rb") as file:
        line = file.read(MAX_INDEX_BYTES)
    text = strip_checksum(line.rstrip(b"\n"))
    if text is None:  # damaged; the file itself may well be whole
        return _index_by_hdf5(path)
    index = decode_index(text)
    if index.version != VERSION:
        raise DamagedFileError(f"{path!r} has version {index.version}; this fastrec reads {VERSION}, so update it")
    return index


def _index_by_hdf5(path: str) -> SegmentIndex:
    """The index that HDF5 itself makes of a file."""
    probe_in_subprocess(path)
    return read_index(path)
