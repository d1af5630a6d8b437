"""What stands behind the end of a finished file: where everything lies, and whether HDF5 can trust its structure."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from typing import Any

import h5py
import msgspec

from fastrec._errors import DamagedFileError
from fastrec.sinks._hdf5_layout import FORMAT, TRAILER, VERSION, SegmentMap
from fastrec.sinks._hdf5_log import checked, signed

PAGE = 4096
PIECE = 1 << 20
ZEROS = bytes(PAGE)


def add_trailer(path: str, found: SegmentMap) -> None:
    """Tell behind the end of the HDF5 file what lies where; any tool that changes the file drops it."""
    with open(path, "rb") as whole:
        structure = _structure(whole.fileno(), found, os.fstat(whole.fileno()).st_size)
    entry = signed(msgspec.json.encode(msgspec.structs.replace(found, structure=structure)))
    with open(path, "ab") as file:
        file.write(entry + TRAILER.pack(len(entry), FORMAT.encode()))


def read_trailer(file: int) -> SegmentMap | None:
    """The map behind the end of a finished file, which spares looking at its structure; None where there is none."""
    return _located(file)[0]


def opened(path: str, **options: Any) -> Any:
    """A finished file, opened by HDF5; a DamagedFileError where its structure is not the one that was written.

    HDF5 trusts what a file says of itself, and may crash over one that is damaged.
    """
    with open(path, "rb") as file:
        found, end = _located(file.fileno())
        if found is not None and found.structure not in (None, _structure(file.fileno(), found, end)):
            raise DamagedFileError(f"{path!r} is damaged: its structure is not the one that was written")
    return h5py.File(path, "r", locking=False, **options)


def decoded(entry: bytes) -> SegmentMap:
    """A map from its JSON."""
    try:
        return msgspec.json.decode(entry, type=SegmentMap)
    except msgspec.DecodeError as error:
        raise DamagedFileError(f"the map of what lies where makes no sense: {error}") from error


def _located(file: int) -> tuple[SegmentMap | None, int]:
    """The map, and where the HDF5 file ends."""
    size = os.fstat(file).st_size
    last = os.pread(file, TRAILER.size, max(0, size - TRAILER.size))
    if len(last) < TRAILER.size:
        return None, size
    length, mark = TRAILER.unpack(last)
    if mark.rstrip(b"\0") != FORMAT.encode():
        return None, size
    start = size - TRAILER.size - length
    entry = checked(os.pread(file, length, start).rstrip(b"\n")) if start >= 0 else None
    if entry is None:
        raise DamagedFileError("the end of the file, which tells what lies where, is damaged")
    found = decoded(entry)
    return (found, start) if found.version == VERSION else (None, size)


def _structure(file: int, found: SegmentMap, end: int) -> int:
    """A checksum of all bytes that are no rows; of pages of zeros, which a file that grew may have many of, none."""
    total = 0
    for start, stop in _outside(found, end):
        at = _next_data(file, start, stop)
        while at < stop:
            data = os.pread(file, min(PAGE - at % PAGE, stop - at), at)
            if not data:
                break
            if data != ZEROS[: len(data)]:
                total = zlib.crc32(data, zlib.crc32(b"%d" % at, total))
            at += len(data)
            if at % PIECE == 0:
                at = _next_data(file, at, stop)
    return total


def _next_data(file: int, start: int, stop: int) -> int:
    """Where a stretch goes on that is no hole."""
    try:
        return max(start, os.lseek(file, start, os.SEEK_DATA) // PAGE * PAGE)
    except OSError as error:
        return stop if error.errno == errno.ENXIO else start  # there are only holes; else the file system does not tell


def _outside(found: SegmentMap, end: int) -> Iterator[tuple[int, int]]:
    """The stretches of a file in which no rows lie."""
    inside = [piece for extent in found.sets.values() for piece in extent.stored()]
    done = 0
    for start, stop in sorted(inside):
        if start > done:
            yield done, min(start, end)
        done = max(done, stop)
        if done >= end:
            return
    yield done, end
