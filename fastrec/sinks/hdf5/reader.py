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
import stat
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from h5py import h5s

from fastrec._errors import DamagedFileError, RecordingFileError, RecordingNotFoundError
from fastrec._torch.process import FORKS
from fastrec.sinks.hdf5.catalog_log import Log
from fastrec.sinks.hdf5.checksums import Counters, read_counters, strip_checksum
from fastrec.sinks.hdf5.layout import (
    COUNTERS,
    COUNTERS_ROW,
    LOG,
    OVERFLOW,
    TABLES,
    VERSION,
    Bytes,
    Rows,
    SegmentIndex,
    read_rows,
)
from fastrec.sinks.hdf5.paths import Paths
from fastrec.sinks.hdf5.probe import probe_in_subprocess
from fastrec.sinks.hdf5.structure import decode_index, load_plugins, open_verified, read_index, read_trailer
from fastrec.sinks.hdf5.system import open_to_read

MIN_READ_ROWS, MAX_READ_ROWS = 1 << 10, 1 << 16
"""How many rows of a table, or bytes of the log, are read at first and at most: it may end at any of them."""

MAX_FIND_ATTEMPTS = 8
"""A segment that is finalized between looking for it and opening it has another name, so it is looked for again."""


class ReadFile:
    """One segment, open for reading; ``in_progress`` while it grows, and for ever if its process was killed."""

    def __init__(self, path: str, *, map_path: str | None = None) -> None:
        self.path = path
        self.in_progress = map_path is not None
        self._descriptor = -1
        # Opened before the index is read: if the segment is finalized meanwhile, this is still the file that the index
        # is of.
        try:
            self._descriptor = open_to_read(path)
        except PermissionError as error:
            raise RecordingFileError(f"{path!r} can't be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise RecordingFileError(f"{path!r} can't be read: it is not a regular file")
        if map_path is not None:
            self.index = _index_beside(path, map_path)
        else:
            self.index = read_trailer(self._descriptor) or _index_by_hdf5(path)
        self._compressed = CompressedFile(path)
        self._check_index()

    def __reduce__(self) -> Any:
        raise TypeError("an open file can't be copied to another process; the recording opens its files again")

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # As an argument, because at the end of the interpreter the module `os` may be gone before this file.
        if self._descriptor >= 0:
            close(self._descriptor)

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
            return read_rows(self._descriptor, extent, first, count, out)
        except DamagedFileError as error:
            raise DamagedFileError(f"{self.path!r}, {name!r}: {error}") from None
        except OSError as error:
            raise RecordingFileError(f"{self.path!r} can't be read: {error.strerror}") from error

    def table(self, name: str, first: int = 0) -> Rows:
        """The rows of a table from one on, up to the first that was not written to its end."""
        pieces, total, step = [np.empty(0, TABLES[name])], self.index.sets[name].rows, MIN_READ_ROWS
        while first < total:
            piece = self.rows(name, first, min(step, total - first)).view(TABLES[name])
            written = piece["ok"] == 1
            if not written.all():
                if not self.in_progress:
                    raise DamagedFileError(f"{self.path!r}: a row of {name!r} was not written to its end")
                pieces.append(piece[: int(np.argmin(written))])
                break
            pieces.append(piece)
            first, step = first + len(piece), min(4 * step, MAX_READ_ROWS)
        return np.concatenate(pieces)

    def counters(self) -> Counters | None:
        """What its session had counted when it was written last; None where nothing was."""
        return read_counters(self.rows(COUNTERS, 0, self.index.sets[COUNTERS].rows))

    def log(self, into: Log, first: int = 0) -> int:
        """Take in the log from a byte on; where its last whole line ends."""
        total = self.index.sets[LOG].rows
        data = self.rows(LOG, first, min(MIN_READ_ROWS if self.in_progress else total, total - first))
        # Nothing says how long the log is so far: it goes on as long as the bytes are not zero.
        while self.in_progress and first + data.size < total and data[-1]:
            more = min(4 * data.size, total - first - data.size)
            data = np.concatenate([data, self.rows(LOG, first + data.size, more)])
        end = first + into.read(self.number, data)
        if not self.in_progress and end < total:
            raise DamagedFileError(f"{self.path!r}: the log is damaged after {end} of {total} bytes")
        return end

    def _check_index(self) -> None:
        """Check that the data sets which every segment has are there, and that all of them lie inside of the file."""
        row_bytes = {name: dtype.itemsize for name, dtype in (*TABLES.items(), (COUNTERS, COUNTERS_ROW))}
        row_bytes |= {LOG: 1, OVERFLOW: 1}
        for name in row_bytes:
            if name not in self.index.sets:
                raise DamagedFileError(f"{self.path!r} lacks the data set {name!r}")
        size = os.fstat(self._descriptor).st_size
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
        self._lock = threading.Lock()
        self._file: Any = None
        self._forks = FORKS.count

    def rows(self, name: str, first: int, count: int, row_bytes: int, out: Bytes | None) -> Bytes:
        """Rows of a data set, as the bytes of its type on the disk."""
        with self._lock:
            try:
                data_set = self._opened()[name].id
                space = data_set.get_space()
                shape = space.get_simple_extent_dims()
                if first < 0 or count < 0 or first + count > shape[0]:
                    raise DamagedFileError(f"rows {first} to {first + count} were asked for, but there are {shape[0]}")
                data = np.empty(count * row_bytes, np.uint8) if out is None else out
                if data.size:
                    space.select_hyperslab((first, *(0 for _ in shape[1:])), (count, *shape[1:]))
                    data_set.read(h5s.create_simple((count, *shape[1:])), space, data, data_set.get_type())
            except DamagedFileError:
                raise
            except (OSError, KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
                load_plugins(f"{self._path!r} ({error})")
                raise DamagedFileError(f"{self._path!r}, {name!r} can't be read: {error}") from error
        return data

    def _opened(self) -> Any:
        if self._file is None or self._forks != FORKS.count:  # a forked child shares HDF5's handle, and its position
            if find_spec("hdf5plugin") is not None:
                load_plugins("reading")
            self._file = open_verified(self._path, rdcc_nbytes=self.CACHE_BYTES)
            self._forks = FORKS.count
        return self._file


def find_files(path: str | os.PathLike[str]) -> list[ReadFile]:
    """The segments of a recording, in order."""
    paths = Paths(path)
    for _ in range(MAX_FIND_ATTEMPTS):
        try:
            files = _open_segments(paths)
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
    if os.path.exists(paths.path):
        n_shown = -segment_of(paths.path)
        if n_shown <= 0:
            return [ReadFile(paths.path)]
    existing = paths.segments()
    files: list[ReadFile] = []
    for number in sorted(existing):
        if paths.finalized(number) in existing[number]:
            files.append(ReadFile(paths.finalized(number)))
        elif paths.map(number) in existing[number]:
            files.append(ReadFile(paths.in_progress(number), map_path=paths.map(number)))
        if files and [file.number for file in files] != list(range(len(files))):
            raise DamagedFileError(f"segment {len(files) - 1} of {paths.path!r} is missing, or another took its place")
    if len(files) < n_shown:
        raise DamagedFileError(f"{paths.path!r} shows {n_shown} segments, but there are {len(files)}")
    return files


def segment_of(path: str) -> int:
    """The number of a file among the segments; -n where it has no rows but shows n others."""
    try:
        descriptor = open_to_read(path)
    except PermissionError as error:
        raise RecordingFileError(f"{path!r} can't be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RecordingFileError(f"{path!r} can't be read: it is not a regular file")
        index = read_trailer(descriptor)
    finally:
        os.close(descriptor)
    return (index or _index_by_hdf5(path)).segment


def _index_beside(path: str, map_path: str) -> SegmentIndex:
    with open(map_path, "rb") as file:
        line = file.read()
    text = strip_checksum(line.rstrip(b"\n"))
    if text is None:  # damaged; the file itself may well be whole
        return _index_by_hdf5(path)
    index = decode_index(text)
    if index.version != VERSION:
        raise DamagedFileError(f"{path!r} has version {index.version}; this fastrec reads {VERSION}")
    return index


def _index_by_hdf5(path: str) -> SegmentIndex:
    """The index that HDF5 itself makes of a file."""
    probe_in_subprocess(path)
    return read_index(path)
