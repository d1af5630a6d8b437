"""Finding the files of a recording, finished or not, and what they hold that was written to its end."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
from h5py import h5s

from fastrec._errors import DamagedFileError, RecordingFileError, RecordingNotFoundError
from fastrec.sinks.hdf5.catalog_log import Log, checked
from fastrec.sinks.hdf5.checksums import Counters, read_counters
from fastrec.sinks.hdf5.layout import COUNTERS, COUNTERS_ROW, LATE, LOG, TABLES, VERSION, Bytes, SegmentIndex, read_rows
from fastrec.sinks.hdf5.paths import Paths
from fastrec.sinks.hdf5.probe import probe_in_subprocess
from fastrec.sinks.hdf5.structure import decoded_index, load_plugins, map_of, opened_file, read_trailer

LEAST, PIECE = 1 << 10, 1 << 16
"""So many rows of a table are read at first and at most, as it may end at any of them."""


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
        self.map = _map_beside(path, map_path) if growing else read_trailer(self._file) or _walked(path)
        self._packed = CompressedFile(path)
        self._check()

    def __reduce__(self) -> Any:
        raise TypeError("an open file can't be copied to another process; the recording opens its files again")

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # When the interpreter ends, what modules hold may be gone before this file.
        if self._file >= 0:
            close(self._file)

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

    def table(self, name: str, first: int = 0) -> npt.NDArray[Any]:
        """The rows of a table that were written to their end, from one on."""
        pieces, total, step = [np.empty(0, TABLES[name])], self.map.sets[name].rows, LEAST
        while first < total:
            piece = self.rows(name, first, min(step, total - first)).view(TABLES[name])
            whole = piece["ok"] == 1
            if not whole.all():
                if not self.growing:
                    raise DamagedFileError(f"{self.path!r}: a row of {name!r} was not written to its end")
                pieces.append(piece[: int(np.argmin(whole))])
                break
            pieces.append(piece)
            first, step = first + len(piece), min(4 * step, PIECE)
        return np.concatenate(pieces)

    def counters(self) -> Counters:
        """What its session had counted when it was written last."""
        return read_counters(self.rows(COUNTERS, 0, self.map.sets[COUNTERS].rows))

    def log(self, into: Log, first: int = 0) -> int:
        """Take in the log from a byte on; how many bytes of it count."""
        total = self.map.sets[LOG].rows
        data = self.rows(LOG, first, min(LEAST if self.growing else total, total - first))
        while self.growing and first + data.size < total and data[-1]:
            more = min(4 * data.size, total - first - data.size)
            data = np.concatenate([data, self.rows(LOG, first + data.size, more)])
        end = first + into.read(self.number, data)
        if not self.growing and end < total:
            raise DamagedFileError(f"{self.path!r}: the log is damaged after {end} of {total} bytes")
        return end

    def _check(self) -> None:
        rows = {name: dtype.itemsize for name, dtype in (*TABLES.items(), (COUNTERS, COUNTERS_ROW))}
        rows |= {LOG: 1, LATE: 1}
        for name in rows:
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
        if sum(extent.rows * extent.row_bytes for extent in self.map.sets.values() if not extent.packed) > size:
            raise DamagedFileError(f"{self.path!r}: the data sets take more than the file")


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
        found = read_trailer(file) if stat.S_ISREG(os.fstat(file).st_mode) else None
    finally:
        os.close(file)
    if found is None and not os.path.isfile(path):
        raise RecordingFileError(f"{path!r} can't be read: it is no plain file")
    return (found or _walked(path)).segment


def _map_beside(path: str, map_path: str) -> SegmentIndex:
    with open(map_path, "rb") as file:
        text = file.read()
    entry = checked(text.rstrip(b"\n"))
    if entry is None:  # damaged; the file itself may well be whole
        return _walked(path)
    found = decoded_index(entry)
    if found.version != VERSION:
        raise DamagedFileError(f"{path!r} has version {found.version}; this fastrec reads {VERSION}")
    return found


def _walked(path: str) -> SegmentIndex:
    """The map that HDF5 itself tells."""
    probe_in_subprocess(path)
    return map_of(path)


CACHE_BYTES = 16 << 20


class CompressedFile:
    """A finished file whose data sets are compressed, opened when the first of them is read."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._pid = 0
        self._file: Any = None

    def rows(self, name: str, first: int, count: int, nbytes: int, out: Bytes | None) -> Bytes:
        """Rows of a data set, as the bytes of its type on the disk."""
        with self._lock:
            try:
                made = self._opened()[name].id
                space = made.get_space()
                shape = space.get_simple_extent_dims()
                if first < 0 or count < 0 or first + count > shape[0]:
                    raise DamagedFileError(f"rows {first} to {first + count} were asked for, and there are {shape[0]}")
                data = np.empty(count * nbytes, np.uint8) if out is None else out
                if data.size:
                    space.select_hyperslab((first, *(0 for _ in shape[1:])), (count, *shape[1:]))
                    made.read(h5s.create_simple((count, *shape[1:])), space, data, made.get_type())
            except DamagedFileError:
                raise
            except (OSError, KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
                if find_spec("hdf5plugin") is None:
                    load_plugins(f"{self._path!r} ({error})")
                raise DamagedFileError(f"{self._path!r}, {name!r} can't be read: {error}") from error
        return data

    def _opened(self) -> Any:
        if self._pid != os.getpid():  # a handle of HDF5 is of no use in a forked child
            if find_spec("hdf5plugin") is not None:
                load_plugins("reading")
            self._file = opened_file(self._path, rdcc_nbytes=CACHE_BYTES)
            self._pid = os.getpid()
        return self._file
