"""The layout of a segment: its data sets, the rows of its tables, and where each row lies in the file.

A segment is one HDF5 file of a recording. HDF5 makes its structure and finishes it; in between, rows are written and
read at offsets in the file that were noted when it was made:

    extent = index.sets["data/relu"]
    write_rows(descriptor, extent, 10, rows)            # os.pwrite, one call for each chunk that the rows touch
    rows = read_rows(descriptor, extent, 10, count=5)   # os.preadv, where there is one

Not through h5py, for three reasons. It holds one lock for the whole process, so a writer that waits for the disk would
stop readers. What it writes lies in its own cache until a flush, which writes more than the rows that are new. And a
data set that grows changes the structure of the file: while that happens no other process can open the file, and a kill
leaves it unreadable. A ``pwrite`` into room that exists already changes nothing but those bytes, and once it returns
they survive whatever happens to the process.

Everything on the disk is named here. Some of these names differ from those in the code, and must stay as they are, so
that files can be read by earlier and later versions.
"""

from __future__ import annotations

import math
import os
import struct
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from fastrec._errors import DamagedFileError
from fastrec.events.sites import Catalog
from fastrec.sinks.hdf5.system import read_into

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Rows = npt.NDArray[Any]

FORMAT = "fastrec"
VERSION = 1

TRAILER = struct.Struct("<Q8s")
"""What ends a finished file: the length of its index, and a mark."""

PASSES, RECORDS, MARKS, CHECKS = "passes", "records", "marks", "checks"
LOG, COUNTERS, SOURCES = "log", "counters", "sources"

OVERFLOW = "late"
"""Bytes of values for which a segment has no data set: of sites that first ran when it had its structure, mostly."""

MERGED = -(1 << 31)
"""The segment number of a file that shows other recordings and has no rows of its own."""

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
        # Last in this row and in others: bytes reach a file in their order, and room that was never written reads as
        # zeros. So where this byte is 1, the whole row was written.
        ("ok", "u1"),
    ]
)

# Without an `ok`: the row of its pass, which is written later, vouches for it. `variant` is the number of a
# RecordMeta. `data` is the number of a DataInfo, -1 where no tensor was kept, and `row` an address (FileAddress).
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

PART_PREFIXES = {"activation": "", "transformed_activation": "transformed_"}
"""In a row of records, the columns `segment`, `data` and `row` of a part have this in front of their names."""

MARK_ROW = np.dtype([("phase", "<i4"), ("segment", "<i4"), ("data", "<i4"), ("row", "<i8"), ("ok", "u1")])

# `data` is the number of a DataInfo, or one of CHECKED_TABLES; `row` the address of the first of `count` rows.
CHECK_ROW = np.dtype([("data", "<i4"), ("row", "<i8"), ("count", "<i8"), ("checksum", "<u4"), ("ok", "u1")])

TABLES = {PASSES: PASS_ROW, RECORDS: RECORD_ROW, MARKS: MARK_ROW, CHECKS: CHECK_ROW}

CHECKED_TABLES = {RECORDS: -1, PASSES: -2, MARKS: -3}

# Two rows, written in turn. A kill may cut one write short, so the row with the higher `written` counts, if its own
# checksum fits; else the other one, which is whole.
COUNTERS_ROW = np.dtype([("written", "<u8"), ("empty", "<i8"), ("begun", "<i8"), ("closed", "u1"), ("checksum", "<u4")])


class FileAddress(NamedTuple):
    """Where a value lies in its segment: the data set, and the row there. In the overflow set, a row is one byte.

    On the disk an address is one signed number, beside the number of the data: from 0 up a row of that data's own set,
    below 0 a byte of the overflow set, as ``-1 - byte``. Only this class and ``Addresses`` know that.
    """

    dataset: str
    row: int

    @classmethod
    def decode(cls, number: int, dataset: str) -> FileAddress:
        """The address that a number stands for, where the data has a set of this name."""
        return cls(OVERFLOW, -1 - number) if number < 0 else cls(dataset, number)

    def encode(self) -> int:
        """The number that stands for it on the disk."""
        return -1 - self.row if self.dataset == OVERFLOW else self.row


class Addresses:
    """The addresses of many values, encoded as in a column of a table."""

    __slots__ = ("encoded",)

    def __init__(self, encoded: Integers) -> None:
        self.encoded = encoded

    @classmethod
    def of(cls, rows: Integers, in_overflow: npt.NDArray[np.bool_] | bool = False) -> Addresses:
        """The addresses of rows of data sets, or, in the overflow set, of bytes."""
        return cls(np.where(in_overflow, -1 - rows, rows))

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, which: Any) -> Addresses:
        return Addresses(self.encoded[which])

    @property
    def in_overflow(self) -> npt.NDArray[np.bool_]:
        """Which of them lie in the overflow set."""
        return self.encoded < 0

    def runs(self) -> list[tuple[slice, bool]]:
        """Stretches that lie in the overflow set, and ones that do not."""
        if self.encoded.min(initial=0) >= 0:  # none does, most often
            return [(slice(None), False)]
        in_overflow = self.in_overflow
        edges = run_edges(in_overflow).tolist()
        return [(slice(a, b), bool(in_overflow[a])) for a, b in zip(edges, edges[1:], strict=False)]

    @property
    def rows(self) -> Integers:
        """The rows of those that lie in data sets of their own."""
        if self.encoded.min(initial=0) >= 0:  # all of them do, most often: nothing to copy
            return self.encoded
        return self.encoded[self.encoded >= 0]

    @property
    def overflow_bytes(self) -> Integers:
        """Where those begin that lie in the overflow set."""
        return -1 - self.encoded[self.encoded < 0]


class RowRun(NamedTuple):
    """Where the rows of a block lie, one after another.

    ``first`` is where row 0 of the block would be; ``stride`` the rows of the data set that each of them takes: 1, or
    in the overflow set its bytes.
    """

    dataset: str
    first: int
    stride: int

    def address(self, row: int) -> FileAddress:
        """Where a row of the block lies."""
        return FileAddress(self.dataset, self.first + row * self.stride)


class DatasetExtent(msgspec.Struct, frozen=True, omit_defaults=True, rename={"compressed": "packed"}):
    """One data set in a file: its rows, their size, and where its chunks lie.

    Where it is ``compressed``, rows can't be read at an offset, and its chunks have ``sizes`` of their own.
    """

    row_bytes: int
    rows: int
    chunk_rows: int
    offsets: list[int]
    compressed: bool = False
    sizes: list[int] = []

    def chunks(self) -> list[tuple[int, int]]:
        """Where each chunk begins and ends in the file."""
        sizes = self.sizes or [self.chunk_rows * self.row_bytes] * len(self.offsets)
        return [(offset, offset + size) for offset, size in zip(self.offsets, sizes, strict=False)]

    def pieces(self, first: int, count: int) -> list[tuple[int, int, int]]:
        """Where rows lie, chunk by chunk: the offset in the file, and the first and end byte of the rows there."""
        if first < 0 or count < 0 or first + count > self.rows:
            raise DamagedFileError(f"rows {first} to {first + count} were asked for, but there are {self.rows}")
        pieces, done = [], 0
        while done < count:
            chunk, row_in_chunk = divmod(first + done, self.chunk_rows)
            rows = min(count - done, self.chunk_rows - row_in_chunk)
            offset = self.offsets[chunk] + row_in_chunk * self.row_bytes
            pieces.append((offset, done * self.row_bytes, (done + rows) * self.row_bytes))
            done += rows
        return pieces


class Identity(msgspec.Struct, frozen=True):
    """Which recording a file is part of, as its attributes say.

    ``run`` is the same in all files of a recording. ``session`` counts the recorders that continued it, ``segment`` its
    files; a file that shows n segments as one has -n. ``rank`` is -1 where the process had none.
    """

    run: str
    session: int
    segment: int
    rank: int
    pid: int

    def of_segment(self, number: int) -> Identity:
        """That of another file of the same session."""
        return msgspec.structs.replace(self, segment=number)


class SegmentIndex(msgspec.Struct, frozen=True):
    """Where each data set of a segment lies, so that rows can be written and read without HDF5.

    It stands beside a file that grows (``run.00000.h5.tmp.map``) and after the end of a finished one. ``structure`` is
    a checksum of everything else in a finished file.
    """

    format: str
    version: int
    identity: Identity
    sets: dict[str, DatasetExtent]
    structure: int | None = None

    @property
    def segment(self) -> int:
        return self.identity.segment


class DataInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a numbered kind of data is: one part of the values of a site, in one shape and dtype, or columns of steps.

    ``name`` is its data set in this segment, or the overflow set where it has none.
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
        """The rows of steps, as numpy reads them; a DamagedFileError for columns that are not numbers."""
        fixed: list[Any] = [("step", "<i8"), ("order", "<i8")]
        try:
            are_numbers = all(np.dtype(dtype).kind in "biuf" for _, dtype, _ in self.columns)
            rows = np.dtype(fixed + [(f"column:{name}", dtype, shape) for name, dtype, shape in self.columns])
        except (TypeError, ValueError) as error:
            raise DamagedFileError(f"the columns of steps {self.columns} make no sense") from error
        if not are_numbers:
            raise DamagedFileError(f"the columns of steps {self.columns} are not numbers")
        return rows

    def site_or_phase(self, catalog: Catalog) -> str:
        """The site of values, or the phase of steps."""
        return catalog.phases[self.phase] if self.part == "step" else catalog.sites[self.site].name

    def row_bytes(self) -> int:
        """How many bytes one row takes."""
        if self.part == "step":
            return self.step_dtype().itemsize
        return dtype_named(self.dtype).itemsize * math.prod(self.shape)


def dtype_named(name: str) -> torch.dtype:
    """The dtype of a short name ("float32") from a file; anything else is a DamagedFileError."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise DamagedFileError(f"{name!r} is not a dtype of this version of torch")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The short name of a dtype, as it stands in files."""
    return str(dtype).removeprefix("torch.")


def write_rows(descriptor: int, extent: DatasetExtent, first: int, data: Bytes) -> None:
    """Write rows in their place. A write that a signal cut short is continued; a full disk is an OSError."""
    if not extent.row_bytes:
        return
    view = data.reshape(-1).data  # slices of it copy nothing
    for offset, start, stop in extent.pieces(first, len(view) // extent.row_bytes):
        while start < stop:
            written = os.pwrite(descriptor, view[start:stop], offset)
            start, offset = start + written, offset + written


def read_rows(descriptor: int, extent: DatasetExtent, first: int, count: int, out: Bytes | None = None) -> Bytes:
    """Read rows as bytes; a file that ends too early is a DamagedFileError."""
    pieces = extent.pieces(first, count)
    data = np.empty(count * extent.row_bytes, np.uint8) if out is None else out
    view = data.data
    for offset, start, stop in pieces:
        while start < stop:
            n_read = read_into(descriptor, view[start:stop], offset)
            if not n_read:
                raise DamagedFileError("the file ends before its data does; it was cut off or not copied whole")
            start, offset = start + n_read, offset + n_read
    return data


def run_edges(numbers: npt.NDArray[Any]) -> Integers:
    """Where each stretch of equal numbers begins, and where the last one ends."""
    if len(numbers) < 2:  # most often, and then it is all that reading one value costs here
        return np.array([0, len(numbers)])
    changes = np.flatnonzero(numbers[1:] != numbers[:-1])
    edges = np.empty(len(changes) + 2, np.int64)
    edges[0], edges[1:-1], edges[-1] = 0, changes + 1, len(numbers)
    return edges
