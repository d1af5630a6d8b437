"""Comparing what is in a recording's files with the checksums that were written beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fastrec._errors import DamagedFileError
from fastrec.sinks.hdf5.checksums import checksum
from fastrec.sinks.hdf5.contents import Contents, read_contents
from fastrec.sinks.hdf5.layout import CHECKED, CHECKS, LATE, DataInfo
from fastrec.sinks.hdf5.reader import ReadFile, find_files
from fastrec.sinks.hdf5.source import PREFIX, merged_of, source_path

NAMES = {number: name for name, number in CHECKED.items()}
Progress = Callable[[int, int], None]
"""Called with how many bytes of how many are done."""


class Damage(msgspec.Struct, frozen=True):
    """Rows of a data set that are not what was written; ``of`` is the site or phase that they belong to."""

    file: str
    data_set: str
    first: int
    count: int
    of: str
    why: str


class Verified(msgspec.Struct, frozen=True):
    """What was compared: so many checksums of so many bytes; and what did not fit.

    ``unchecked`` values have no checksum: a process that was killed may leave some.
    """

    path: str
    files: int
    checksums: int
    nbytes: int
    unchecked: int
    damage: list[Damage]


def verify(path: str | os.PathLike[str], progress: Progress | None = None) -> Verified:
    """Compare every block of a recording with its checksum.

    >>> import torch, fastrec
    >>> from fastrec.files import verify
    >>> model = torch.nn.Linear(4, 2)
    >>> with fastrec.Recorder(model, keep_op="linear", sink="verified.h5") as rec:
    ...     out = model(torch.ones(5, 4))
    >>> verify("verified.h5").damage
    []

    Arguments:
        path: the path that the recorder was given.
        progress: called with the bytes that were compared so far, and with those that there are.

    Values that are damaged are in the result. Raises DamagedFileError where it is the index, without which nothing
    can be read, and else what ``fastrec.load`` does.
    """
    place = os.fspath(path)
    named = merged_of(path)
    recordings = [_Recording(one) for one in ([place] if named is None else [source_path(place, n) for n in named])]
    blocks = [block for recording in recordings for block in recording.blocks]
    total, done = sum(block.nbytes for block in blocks), 0
    damage = []
    for block in blocks:
        why = block.damage()
        if why:
            damage.append(Damage(block.file.path, block.name, block.first, block.count, block.of, why))
        done += block.nbytes
        if progress is not None:
            progress(done, total)
    files = sum(len(recording.files) for recording in recordings)
    unchecked = sum(recording.unchecked() for recording in recordings)
    return Verified(place, files, len(blocks), total, unchecked, damage)


class _Recording:
    """The files of one recording, and the blocks that checksums are of."""

    def __init__(self, path: str) -> None:
        self.files = find_files(path)
        self.contents = read_contents(self.files)
        self.blocks = [block for file in self.files for block in _blocks(file, self.contents)]

    def unchecked(self) -> int:
        """How many values that records speak of are in no block."""
        return sum(_unchecked(file, self.contents, self.blocks) for file in self.files)


class _Block(msgspec.Struct, frozen=True):
    """Rows that one checksum is of; of ``late``, a row is a byte."""

    file: ReadFile
    data: int
    name: str
    of: str
    first: int
    count: int
    expected: int

    @property
    def nbytes(self) -> int:
        extent = self.file.map.sets.get(self.name)
        return self.count * extent.row_bytes if extent is not None else 0

    def damage(self) -> str:
        """Why the rows are not what they were, or nothing."""
        try:
            found = checksum(self.file.rows(self.name, self.first, self.count))
        except DamagedFileError as error:
            return str(error)
        return "" if found == self.expected else "other bytes than were written"


def _blocks(file: ReadFile, contents: Contents) -> Iterator[_Block]:
    before = contents.sessions[file.number].before.data
    for data, row, count, expected, _ in file.table(CHECKS).tolist():
        if data < 0:
            name, of = NAMES.get(data, ""), ""
        else:
            info = contents.log.data.get((file.number, data + before))
            name, of = (info.name, _of(info, contents)) if info is not None else ("", "")
        if not name:
            raise DamagedFileError(f"{file.path!r}: a checksum is of the data {data}, which the log does not know")
        late, first = row < 0, max(row, -1 - row)
        if first + count >= 1 << 62 or count < 0:
            raise DamagedFileError(f"{file.path!r}: a checksum is of {count} rows from {first} on")
        yield _Block(file, data + before, LATE if late else name, of, first, count, expected)


def _of(info: DataInfo, contents: Contents) -> str:
    catalog = contents.log.catalog
    return catalog.phases[info.phase] if info.part == "step" else catalog.sites[info.site].name


def _unchecked(file: ReadFile, contents: Contents, blocks: list[_Block]) -> int:
    """How many values that records speak of are in no block."""
    missing = 0
    for prefix in PREFIX.values():
        raw = contents.records[contents.records[prefix + "segment"] == file.number]
        for number in np.unique(raw[prefix + "data"]).tolist():
            info = contents.log.data.get((file.number, number))
            if number >= 0 and info is None:
                raise DamagedFileError(f"{file.path!r}: a record lies in the data {number}, of which the log is silent")
            if info is not None and 0 not in info.shape:
                rows = raw[prefix + "row"][raw[prefix + "data"] == number]
                own = [block for block in blocks if block.file is file and block.data == number]
                for late in (False, True):
                    of_kind = [block for block in own if (block.name == LATE) is late]
                    missing += _outside(-1 - rows[rows < 0] if late else rows[rows >= 0], of_kind)
    return missing


def _outside(places: npt.NDArray[Any], blocks: list[_Block]) -> int:
    starts = np.array(sorted(block.first for block in blocks) or [0], np.int64)
    stops = np.array([stop for _, stop in sorted((b.first, b.first + b.count) for b in blocks)] or [0], np.int64)
    stops = np.maximum.accumulate(stops)
    at = np.searchsorted(starts, places, side="right") - 1
    return int(((at < 0) | (places >= stops[np.maximum(at, 0)])).sum())
