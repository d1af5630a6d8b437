"""Where the rows of a segment lie in its file, and what the rows of its tables are."""

from __future__ import annotations

import os
import struct
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fastrec._errors import DamagedFileError

FORMAT = "fastrec"

VERSION = 1

TRAILER = struct.Struct("<Q8s")

PASSES, RECORDS, MARKS, CHECKS = "passes", "records", "marks", "checks"

LOG, LATE, COUNTERS, SOURCES = "log", "late", "counters", "sources"

MERGED = -(1 << 31)
"""The segment number of a file that shows other recordings, and holds nothing itself."""

# The last byte of a row tells that it was written to its end: bytes reach a file in their order.
PASS_ROW = np.dtype(
    [
        ("pass_index", "<i8"),
        ("entry", "<i4"),
        ("entry_pass", "<i8"),
        ("phase", "<i4"),
        ("grad", "u1"),
        ("outcome", "u1"),
        ("step", "<i8"),
        ("started", "<f8"),
        ("duration", "<f8"),
        ("first", "<i8"),
        ("count", "<i8"),
        ("ok", "u1"),
    ]
)

RECORD_ROW = np.dtype(
    [
        ("variant", "<i4"),
        ("time", "<f8"),
        ("segment", "<i4"),
        ("data", "<i4"),
        ("row", "<i8"),
        ("transformed_segment", "<i4"),
        ("transformed_data", "<i4"),
        ("transformed_row", "<i8"),
    ]
)

MARK_ROW = np.dtype([("phase", "<i4"), ("segment", "<i4"), ("data", "<i4"), ("row", "<i8"), ("ok", "u1")])

# Which rows a checksum is of: `data` as in the log, or one of `CHECKED`; a row before 0 counts bytes of the late ones.
CHECK_ROW = np.dtype([("data", "<i4"), ("row", "<i8"), ("count", "<i8"), ("checksum", "<u4"), ("ok", "u1")])

TABLES = {PASSES: PASS_ROW, RECORDS: RECORD_ROW, MARKS: MARK_ROW, CHECKS: CHECK_ROW}

CHECKED = {RECORDS: -1, PASSES: -2, MARKS: -3}

# Two rows, written in turn, so that one of them is whole at any time: the one with the higher `written`.
COUNTERS_ROW = np.dtype([("written", "<u8"), ("empty", "<i8"), ("begun", "<i8"), ("closed", "u1"), ("checksum", "<u4")])

Bytes = npt.NDArray[np.uint8]


class DatasetExtent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One data set in a file: so many rows of so many bytes, in chunks at these offsets.

    A ``packed`` one is compressed, so that its rows lie nowhere as they are; its chunks have other ``sizes``.
    """

    row_bytes: int
    rows: int
    chunk_rows: int
    offsets: list[int]
    packed: bool = False
    sizes: list[int] = []

    def stored(self) -> list[tuple[int, int]]:
        """Where the bytes of its chunks begin and end."""
        sizes = self.sizes or [self.chunk_rows * self.row_bytes] * len(self.offsets)
        return [(offset, offset + size) for offset, size in zip(self.offsets, sizes, strict=False)]

    def pieces(self, first: int, count: int) -> list[tuple[int, int, int]]:
        """The (offset in the file, first byte, end byte) of rows, chunk by chunk."""
        if first < 0 or count < 0 or first + count > self.rows:
            raise DamagedFileError(f"rows {first} to {first + count} were asked for, and there are {self.rows}")
        found, done = [], 0
        while done < count:
            chunk, inside = divmod(first + done, self.chunk_rows)
            rows = min(count - done, self.chunk_rows - inside)
            start = self.offsets[chunk] + inside * self.row_bytes
            found.append((start, done * self.row_bytes, (done + rows) * self.row_bytes))
            done += rows
        return found


class Identity(msgspec.Struct, frozen=True):
    """What a file is part of, as its attributes tell.

    ``run`` is the same in all files of a recording. ``session`` counts the recorders that continued it, ``segment`` its
    files; one that shows n of them together has -n. ``rank`` is -1 where the process has none.
    """

    run: str
    session: int
    segment: int
    rank: int
    pid: int

    def of_segment(self, number: int) -> Identity:
        """Another file of the same session."""
        return msgspec.structs.replace(self, segment=number)


class SegmentIndex(msgspec.Struct, frozen=True):
    """All data sets of one segment, by name; ``structure`` is a checksum of all else in a finished file."""

    format: str
    version: int
    identity: Identity
    sets: dict[str, DatasetExtent]
    structure: int | None = None

    @property
    def segment(self) -> int:
        return self.identity.segment


class DataInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the rows of a data set are: one part of the values of a site, or the columns of steps.

    ``name`` is the data set in this segment; ``late`` holds what came when the segment had its structure already.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    dtype: str
    site: int = -1
    spec: int = -1
    phase: int = -1
    columns: tuple[tuple[str, str, tuple[int, ...]], ...] = ()

    def step_dtype(self) -> np.dtype[Any]:
        """The rows of steps, as numpy reads them; a DamagedFileError for what is no number."""
        fixed: list[Any] = [("step", "<i8"), ("order", "<i8")]
        try:
            are_numbers = all(np.dtype(dtype).kind in "biuf" for _, dtype, _ in self.columns)
            made = np.dtype(fixed + [(f"column:{name}", dtype, shape) for name, dtype, shape in self.columns])
        except (TypeError, ValueError) as error:
            raise DamagedFileError(f"the columns of steps {self.columns} make no sense") from error
        if not are_numbers:
            raise DamagedFileError(f"the columns of steps {self.columns} are no numbers")
        return made


def write_rows(file: int, extent: DatasetExtent, first: int, data: Bytes) -> None:
    """Put rows where they belong; what a signal or a full disk cut short goes on, or is an OSError."""
    if not extent.row_bytes:
        return
    view = data.reshape(-1).data
    for offset, start, stop in extent.pieces(first, len(view) // extent.row_bytes):
        while start < stop:
            written = os.pwrite(file, view[start:stop], offset)
            start, offset = start + written, offset + written


def read_rows(file: int, extent: DatasetExtent, first: int, count: int, out: Bytes | None = None) -> Bytes:
    """Rows of a data set, as bytes; a file that ends too early is a DamagedFileError."""
    pieces = extent.pieces(first, count)
    data = np.empty(count * extent.row_bytes, np.uint8) if out is None else out
    view = data.data
    for offset, start, stop in pieces:
        while start < stop:
            got = os.preadv(file, [view[start:stop]], offset)
            if not got:
                raise DamagedFileError("the file ends before its data; it was cut off, or not copied whole")
            start, offset = start + got, offset + got
    return data
