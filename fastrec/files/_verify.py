"""Comparing what is in a recording's files with the checksums that were written beside it."""

from __future__ import annotations

import os

import msgspec
import numpy as np

from fastrec._errors import DamagedFileError, FastrecError
from fastrec.files._verify_history import history_blocks
from fastrec.sinks.hdf5.blocks import CheckedBlock, blocks_of
from fastrec.sinks.hdf5.contents import Contents, read_contents
from fastrec.sinks.hdf5.copy_file import Progress
from fastrec.sinks.hdf5.folder import is_one_recording, recordings_of
from fastrec.sinks.hdf5.layout import (
    OVERFLOW,
    PART_PREFIXES,
    Addresses,
    Integers,
)
from fastrec.sinks.hdf5.merged import shown_path, shown_recordings
from fastrec.sinks.hdf5.reader import Loss, ReadFile, find_files


class Damage(msgspec.Struct, frozen=True):
    """Rows of a data set that are not what was written; ``of`` is the site or phase that they belong to."""

    file: str
    data_set: str
    first: int
    count: int
    of: str
    why: str


class Verified(msgspec.Struct, frozen=True):
    """How many checksums of how many bytes were compared, and what did not fit.

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
        path: the path that the recorder was given, a folder, or a history that was saved.
        progress: called with the bytes that were compared so far, and with their total.

    Values that are damaged are in the result. Raises DamagedFileError where it is the index, without which nothing
    can be read, and otherwise what ``fastrec.load`` does. In a folder such a file is damage like any other.
    """
    try:
        recordings, damage = _recordings_of(path)
    except DamagedFileError:
        blocks_of_history = history_blocks(os.fspath(path)) if os.path.isfile(path) else None
        if blocks_of_history is None:
            raise
        return _verified_history(os.fspath(path), blocks_of_history, progress)
    blocks = [block for recording in recordings for block in recording.blocks]
    total, done = sum(block.nbytes for block in blocks), 0
    damage += [Damage(loss.file, loss.data_set, 0, 0, "", loss.what) for loss in _losses(recordings)]
    for block in blocks:
        why = block.damage()
        if why:
            damage.append(Damage(block.file.path, block.data_set, block.first, block.count, block.of, why))
        done += block.nbytes
        if progress is not None:
            progress(done, total)
    n_files = sum(len(recording.files) for recording in recordings)
    n_unchecked = sum(recording.count_unchecked() for recording in recordings)
    return Verified(os.fspath(path), n_files, len(blocks), total, n_unchecked, damage)


def _verified_history(path: str, blocks: list[tuple[str, int, str]], progress: Progress | None) -> Verified:
    """The same of the tensors of a history."""
    total = sum(nbytes for _, nbytes, _ in blocks)
    if progress is not None:
        progress(total, total)
    damage = [Damage(path, name, 0, 0, "", why) for name, _, why in blocks if why]
    return Verified(path, 1, len(blocks), total, 0, damage)


def _recordings_of(path: str | os.PathLike[str]) -> tuple[list[_Recording], list[Damage]]:
    """One recording, those that it shows, or those in a folder, of which damaged ones are left out and told."""
    if not is_one_recording(path):
        recordings: list[_Recording] = []
        damage: list[Damage] = []
        for recording_path in recordings_of(path):
            try:
                shown = shown_recordings(recording_path)
                recordings += [_Recording(recording_path)] if shown is None else []
            except FastrecError as error:
                damage.append(Damage(recording_path, "", 0, 0, "", str(error)))
        return recordings, damage
    path = os.fspath(path)
    shown = shown_recordings(path)
    paths = [path] if shown is None else [shown_path(path, recording) for recording in shown]
    return [_Recording(recording_path) for recording_path in paths], []


class _Recording:
    """The files of one recording, and the blocks that checksums are of."""

    def __init__(self, path: str) -> None:
        self.files = find_files(path)
        self.contents = read_contents(self.files, salvage=True)
        self.blocks = [block for file in self.files for block in blocks_of(file, self.contents)]

    def count_unchecked(self) -> int:
        """How many values that records name are in no block."""
        return sum(_count_unchecked(file, self.contents, self.blocks) for file in self.files)


def _losses(recordings: list[_Recording]) -> list[Loss]:
    return [loss for recording in recordings for loss in recording.contents.losses]


def _count_unchecked(file: ReadFile, contents: Contents, blocks: list[CheckedBlock]) -> int:
    """How many values in a file that records name are in no block."""
    n_unchecked = 0
    for prefix in PART_PREFIXES.values():
        records = contents.records[contents.records[prefix + "segment"] == file.number]
        for number in np.unique(records[prefix + "data"]).tolist():
            info = contents.log.data.get((file.number, number))
            if number >= 0 and info is None:
                raise DamagedFileError(f"{file.path!r}: a record lies in the data {number}, which is not in the log")
            if info is not None and 0 not in info.shape:
                addresses = Addresses(records[prefix + "row"][records[prefix + "data"] == number])
                of_data = [block for block in blocks if block.file is file and block.data == number]
                in_overflow = [block for block in of_data if block.data_set == OVERFLOW]
                in_set = [block for block in of_data if block.data_set != OVERFLOW]
                n_unchecked += _count_outside(addresses.rows, in_set)
                n_unchecked += _count_outside(addresses.overflow_bytes, in_overflow)
    return n_unchecked


def _count_outside(rows: Integers, blocks: list[CheckedBlock]) -> int:
    """How many of these rows are in none of the blocks."""
    spans = sorted((block.first, block.first + block.count) for block in blocks) or [(0, 0)]
    starts = np.array([start for start, _ in spans], np.int64)
    stops = np.maximum.accumulate(np.array([stop for _, stop in spans], np.int64))
    last_before = np.searchsorted(starts, rows, side="right") - 1
    return int(((last_before < 0) | (rows >= stops[np.maximum(last_before, 0)])).sum())
