"""Blocks: rows that were written together, and that one checksum is of.

    for block in blocks_of(file, contents):
        block.damage()            # '' or why its rows are not what was written

    reader = CheckedReader(contents)
    reader.check(segment, data, dataset, first, count)    # a DamagedFileError, or nothing

The table of checks has an entry for each of them. A process that was killed may have written rows of which none speaks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import msgspec
import numpy as np

from fastrec._errors import DamagedFileError, FastrecError
from fastrec.sinks.hdf5.checksums import checksum
from fastrec.sinks.hdf5.contents import Contents, written
from fastrec.sinks.hdf5.layout import CHECKED_TABLES, CHECKS, FileAddress, Integers
from fastrec.sinks.hdf5.reader import ReadFile

TABLE_NAMES = {number: name for name, number in CHECKED_TABLES.items()}

MAX_ROW = 1 << 62


class CheckedBlock(msgspec.Struct, frozen=True):
    """Rows of a data set that one checksum is of, and the number of their data."""

    file: ReadFile
    data: int
    data_set: str
    of: str
    first: int
    count: int
    expected: int

    @property
    def nbytes(self) -> int:
        extent = self.file.index.sets.get(self.data_set)
        return self.count * extent.row_bytes if extent is not None else 0

    def damage(self) -> str:
        """Why the rows are not what was written, or nothing."""
        try:
            actual = checksum(self.file.rows(self.data_set, self.first, self.count))
        except DamagedFileError as error:
            return str(error)
        return "" if actual == self.expected else "other bytes than were written"

    def __str__(self) -> str:
        of = f" of {self.of!r}" if self.of else ""
        return f"rows {self.first} to {self.first + self.count - 1} of {self.data_set!r}{of} in {self.file.path!r}"


def blocks_of(file: ReadFile, contents: Contents) -> Iterator[CheckedBlock]:
    """All blocks of a file; a DamagedFileError where the table of checks makes no sense."""
    offset = contents.sessions[file.number].offset.data
    for number, row, count, expected, _ in written(file.table(CHECKS)).tolist():
        if number < 0:
            name, of = TABLE_NAMES.get(number, ""), ""
        else:
            info = contents.log.data.get((file.number, number + offset))
            name, of = (info.name, info.site_or_phase(contents.log.catalog)) if info is not None else ("", "")
        if not name:
            raise DamagedFileError(f"{file.path!r}: a checksum is of the data {number}, which is not in the log")
        address = FileAddress.decode(row, name)
        if address.row + count >= MAX_ROW or count < 0:
            raise DamagedFileError(f"{file.path!r}: a checksum is of {count} rows from {address.row} on")
        yield CheckedBlock(file, number + offset, address.dataset, of, address.row, count, expected)


def check_tables(contents: Contents) -> None:
    """Compare the tables with their checksums; a DamagedFileError where one is not what was written."""
    for file in contents.files.values():
        for block in blocks_of(file, contents):
            if block.data_set in CHECKED_TABLES:
                _raise_damage(block)


def _raise_damage(block: CheckedBlock) -> None:
    why = block.damage()
    if why:
        raise DamagedFileError(
            f"{block}: {why}; fastrec.files.verify lists all damage, and fastrec.load(..., salvage=True) reads what is "
            "there"
        )


class CheckedReader:
    """Compares each block with its checksum once, when the first of its rows is read."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._lock = threading.Lock()
        self._blocks: dict[int, dict[tuple[int, str], _Unchecked]] = {}

    def check(self, segment: int, data: int, dataset: str, rows: Integers) -> None:
        """Compare the blocks that these rows lie in; a DamagedFileError where one is not what was written."""
        with self._lock:
            if segment not in self._blocks:
                self._blocks[segment] = self._of_segment(segment)
            unchecked = self._blocks[segment].get((data, dataset))
            if unchecked is None:
                return
            for block in unchecked.take(rows):
                try:
                    _raise_damage(block)
                except FastrecError:
                    unchecked.put_back(block)
                    raise

    def _of_segment(self, segment: int) -> dict[tuple[int, str], _Unchecked]:
        blocks: dict[tuple[int, str], list[CheckedBlock]] = {}
        for block in blocks_of(self._contents.files[segment], self._contents):
            blocks.setdefault((block.data, block.data_set), []).append(block)
        return {key: _Unchecked(of_key) for key, of_key in blocks.items()}


class _Unchecked:
    """Blocks of one data set, of which each is handed out once."""

    def __init__(self, blocks: list[CheckedBlock]) -> None:
        self._blocks = sorted(blocks, key=lambda block: block.first)
        self._starts = np.array([block.first for block in self._blocks], np.int64)
        self._is_checked = np.zeros(len(blocks), np.bool_)

    def take(self, rows: Integers) -> list[CheckedBlock]:
        """The blocks in which rows lie, without those that were taken before."""
        which = np.unique(np.searchsorted(self._starts, rows, side="right") - 1)
        which = which[which >= 0]
        which = which[~self._is_checked[which]]
        self._is_checked[which] = True
        return [self._blocks[i] for i in which.tolist()]

    def put_back(self, block: CheckedBlock) -> None:
        """Hand a block out again, so that reading its rows is an error each time."""
        self._is_checked[self._blocks.index(block)] = False
