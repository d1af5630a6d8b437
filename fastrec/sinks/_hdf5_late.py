"""Values that came when a file had its structure already, and how they get data sets when it is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fastrec.sinks._hdf5_checks import checksum
from fastrec.sinks._hdf5_layout import CHECKED, CHECKS, LATE, MARKS, RECORDS, TABLES, Bytes

Integers = npt.NDArray[np.int64]


class LateBlock(msgspec.Struct):
    """Rows that lie together among the late values, from a byte on."""

    start: int
    rows: int = 0


class LateBlocks:
    """What lies among the late values, by number of the data, in the order of the bytes."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[LateBlock]] = {}
        self.row_bytes: dict[int, int] = {}

    def reserve(self, number: int, start: int, row_bytes: int) -> None:
        """A block begins at a byte."""
        self.blocks.setdefault(number, []).append(LateBlock(start))
        self.row_bytes[number] = row_bytes

    def put(self, number: int, start: int, nbytes: int) -> None:
        """Bytes of a block were written."""
        block = next(block for block in reversed(self.blocks[number]) if block.start <= start)
        block.rows = max(block.rows, (start + nbytes - block.start) // self.row_bytes[number])

    def rows(self, number: int) -> int:
        """How many rows of some data there are."""
        return sum(block.rows for block in self.blocks[number])


class Moves:
    """Rows that go from the late values to data sets: ``names`` by number, ``bases`` the first row there."""

    def __init__(self, late: LateBlocks, segment: int, names: Mapping[int, str], bases: Mapping[int, int]) -> None:
        self._late = late
        self._segment = segment
        self._sets = {name: (number, bases[number]) for number, name in names.items()}
        self._firsts: dict[int, tuple[Integers, Integers]] = {}
        for number in names:
            blocks = late.blocks[number]
            counts = np.array([block.rows for block in blocks], np.int64)
            starts = np.array([block.start for block in blocks], np.int64)
            self._firsts[number] = starts, bases[number] + np.cumsum(counts) - counts

    def row(self, number: int, row: int) -> int | None:
        """Where a row of the late values went; None where it did not."""
        if number not in self._firsts or row >= 0:
            return None
        return int(self._moved(number, np.array([row]))[0])

    def reading(self, read: Callable[[str, int, int], Bytes]) -> Callable[[str, int, int], Bytes]:
        """Read the file as if the rows had gone where they go."""

        def moved(name: str, first: int, count: int) -> Bytes:
            if name in self._sets:
                return self._read(read, name, first, count)
            data = read(name, first, count)
            if name in (RECORDS, MARKS):
                self._renumber(data.view(TABLES[name]))
            elif name == CHECKS:
                self._check(data.view(TABLES[name]), moved)
            return data

        return moved

    def _moved(self, number: int, rows: Integers) -> Integers:
        starts, firsts = self._firsts[number]
        at = -1 - rows
        block = np.searchsorted(starts, at, side="right") - 1
        moved: Integers = firsts[block] + (at - starts[block]) // self._late.row_bytes[number]
        return moved

    def _renumber(self, table: npt.NDArray[Any]) -> None:
        for prefix in ("", "transformed_") if "transformed_row" in (table.dtype.names or ()) else ("",):
            here = (table[prefix + "segment"] == self._segment) & (table[prefix + "row"] < 0)
            for number in self._firsts:
                at = here & (table[prefix + "data"] == number)
                table[prefix + "row"][at] = self._moved(number, table[prefix + "row"][at])

    def _check(self, table: npt.NDArray[Any], read: Callable[[str, int, int], Bytes]) -> None:
        for number in self._firsts:
            at = (table["data"] == number) & (table["row"] < 0)
            table["row"][at] = self._moved(number, table["row"][at])
            table["count"][at] //= self._late.row_bytes[number]
        for name in (RECORDS, MARKS):
            for i in np.flatnonzero(table["data"] == CHECKED[name]).tolist():
                table["checksum"][i] = checksum(read(name, int(table["row"][i]), int(table["count"][i])))

    def _read(self, read: Callable[[str, int, int], Bytes], name: str, first: int, count: int) -> Bytes:
        number, base = self._sets[name]
        size = self._late.row_bytes[number]
        parts: list[Bytes] = [read(name, first, min(first + count, base) - first)] if first < base else []
        at = base
        for block in self._late.blocks[number]:
            start, stop = max(first, at), min(first + count, at + block.rows)
            if start < stop:
                parts.append(read(LATE, block.start + (start - at) * size, (stop - start) * size))
            at += block.rows
        return _joined(parts)


def _joined(parts: Sequence[Bytes]) -> Bytes:
    return parts[0] if len(parts) == 1 else np.concatenate([part.reshape(-1) for part in parts])
