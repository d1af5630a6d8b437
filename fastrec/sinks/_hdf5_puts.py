"""Putting rows of blocks where they have their places, with checksums once they can change no more."""

from __future__ import annotations

from collections.abc import Sequence

from fastrec.sinks._hdf5_checks import Checker, checksum
from fastrec.sinks._hdf5_layout import Bytes
from fastrec.sinks._hdf5_segment import Segment
from fastrec.sinks._hdf5_staging import StagedBlock


class Puts:
    """Writes what is staged in blocks that have a place in a segment."""

    def __init__(self) -> None:
        self._checker = Checker()

    def whole(self, segment: Segment, block: StagedBlock) -> None:
        """Write a full block."""
        _arrived(block)
        self._checked(segment, block, block.count)
        segment.written(block)

    def settled(self, segment: Segment, block: StagedBlock, bottom: int) -> None:
        """Write rows from one on; with a checksum where none before the last one can still change."""
        _arrived(block)
        if block.settled == block.top:
            self._checked(segment, block, block.top)
        else:
            _put(segment, block, bottom, [memory[bottom : block.top] for memory in block.memory])

    def copy(self, segment: Segment, block: StagedBlock) -> None:
        """Write rows of which some may be on their way at this moment, so that file and checksum agree."""
        start, parts = block.checked, [memory[block.checked : block.top].copy() for memory in block.memory]
        _put(segment, block, start, parts)
        _note(segment, block, start, parts, [checksum(part) for part in parts])

    def close(self) -> None:
        """Nothing more is written."""
        self._checker.close()

    def _checked(self, segment: Segment, block: StagedBlock, stop: int) -> None:
        start, block.checked = block.checked, stop
        parts = [memory[start:stop] for memory in block.memory]
        sums = self._checker.of(parts, lambda: _put(segment, block, start, parts))
        _note(segment, block, start, parts, sums)


def _put(segment: Segment, block: StagedBlock, start: int, parts: Sequence[Bytes]) -> None:
    assert block.place is not None
    for number, first, rows in zip(block.stage.data, block.place.firsts, parts, strict=True):
        segment.put(number, first, start, rows)


def _note(segment: Segment, block: StagedBlock, start: int, parts: Sequence[Bytes], sums: Sequence[int]) -> None:
    assert block.place is not None
    for number, first, rows, one in zip(block.stage.data, block.place.firsts, parts, sums, strict=True):
        segment.check(number, first, start, rows, one)


def _arrived(block: StagedBlock) -> None:
    """Wait for copies from a device that are under way."""
    for maker, rows in zip(block.stage.makers, block.values, strict=True):
        if maker.arrive_from is not None:
            rows.read()
