"""One file of a recording while it is written: its room is made ahead, so its structure never changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fastrec.sinks.hdf5.catalog_log import line, signed, torch_dtype_of
from fastrec.sinks.hdf5.checksums import check_row, checksum
from fastrec.sinks.hdf5.layout import (
    CHECKED,
    CHECKS,
    COUNTERS,
    COUNTERS_ROW,
    LATE,
    LOG,
    MARKS,
    RECORDS,
    TABLES,
    Bytes,
    DataInfo,
    Identity,
    read_rows,
    write_rows,
)
from fastrec.sinks.hdf5.options import HDF5Options
from fastrec.sinks.hdf5.paths import Paths, lock
from fastrec.sinks.hdf5.staging import BlockPlace, StagedBlock
from fastrec.sinks.hdf5.structure import DatasetSpec, Read, Rewriting, attribute, create, dataset_name, rewrite, shrink

MAX_REWRITTEN = 128 << 20
"""A file of up to so many bytes is written anew when it is finished; a larger one keeps holes where it had room."""


class Segment:
    """Hands out places for blocks of rows, and puts bytes there."""

    def __init__(
        self, paths: Paths, identity: Identity, infos: Sequence[DataInfo], needs: Capacity, options: HDF5Options
    ) -> None:
        self.number = number = identity.segment
        self._paths = paths
        self._infos = infos
        self._wanted = planned(infos, needs, options.room())
        self._names = {int(one.attributes["number"]): one.name for one in self._wanted if "number" in one.attributes}
        self._path = paths.growing(number)
        self._map = create(self._path, identity, self._wanted)
        self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        if options.locking:
            lock(self._file, self._path)
        _write_map(paths.map(number), signed(msgspec.json.encode(self._map)))
        self._reserved: dict[str, int] = {}
        self.used = dict.fromkeys(self._map.sets, 0)
        self.seen: dict[int, DataInfo] = {}  # the data that has a place here
        self._told_later = 0  # bytes of the log that are kept for what it has to say of that data
        self._checks: list[npt.NDArray[np.void]] = []
        self._late = OverflowBlocks()
        self._moves: Relocation | None = None
        self._checked_later = 0  # rows of checksums that are kept for blocks that have places

    def place(self, block: StagedBlock) -> BlockPlace | None:
        """Room for the rows of a block that are not settled elsewhere; None where there is none."""
        untold = sum(number not in self.seen for number in block.stage.data) * MAX_LOG_LINE_BYTES
        if not self.has_room({LOG: self._told_later + untold, CHECKS: len(block.stage.data)}):
            return None
        firsts = []
        for number, maker in zip(block.stage.data, block.stage.makers, strict=True):
            first = self._reserve(number, maker.nbytes, block.count - block.cut)
            if first is None:
                return None
            start, stride = first
            firsts.append((start - block.cut * stride, stride))
        self._told_later += untold
        self._checked_later += len(block.stage.data)
        for number in block.stage.data:
            if number not in self.seen:
                self.seen[number] = msgspec.structs.replace(self._infos[number], name=self._names.get(number, LATE))
        return BlockPlace(self.number, firsts)

    def put(self, number: int, first: tuple[int, int], start: int, rows: Bytes) -> None:
        """Write rows of a block, the first of them at its place ``start``."""
        at = first[0] + start * first[1]
        if not rows.size:
            return
        if at >= 0:
            self._write(self._names[number], at, rows, len(rows))
        else:
            self._write(LATE, -1 - at, rows, rows.size)
            self._late.put(number, -1 - at, rows.size)

    def check(self, number: int, first: tuple[int, int], start: int, rows: Bytes, checksum: int) -> None:
        """Note the checksum of rows of a block that were written."""
        if rows.size:
            at = first[0] + start * first[1]
            self._checks.append(check_row(number, at, len(rows) if at >= 0 else rows.size, checksum))

    def written(self, block: StagedBlock) -> None:
        """A block that had a place was written whole, and its checksum noted."""
        self._checked_later -= len(block.stage.data)

    def write_checks(self) -> None:
        """Write the checksums that were noted."""
        if self._checks:
            self.append(CHECKS, np.concatenate(self._checks))
            self._checks = []

    def count(self, row: Bytes, written: int) -> None:
        """Write the counters, in the place of those before the last ones."""
        self._write(COUNTERS, written % 2, row, 1)

    def has_room(self, wanted: Mapping[str, int]) -> bool:
        """Whether the tables can take so many rows more."""
        kept = {CHECKS: len(self._checks) + self._checked_later}
        return all(
            self.used[name] + kept.get(name, 0) + rows <= self._map.sets[name].rows for name, rows in wanted.items()
        )

    def append(self, table: str, rows: npt.NDArray[np.void] | bytes) -> int:
        """Write rows behind those that a table has; the number of the first."""
        data = np.frombuffer(rows if isinstance(rows, bytes) else rows.tobytes(), np.uint8)
        first = self.used[table]
        if data.size:
            self._write(table, first, data, len(rows))
            if table in CHECKED:
                self._checks.append(check_row(CHECKED[table], first, len(rows), checksum(data)))
        return first

    def sync(self) -> None:
        """Wait until the disk has what was written."""
        os.fdatasync(self._file)

    def seal(self, path: str, options: HDF5Options) -> None:
        """Make a finished file of it, of its real size, and give it its name."""
        real = sum(self.used[name] * extent.row_bytes for name, extent in self._map.sets.items())
        small = options.compression is not None or real <= MAX_REWRITTEN
        if not small or not self._rewritten(path, Rewriting(options.durable, options.compression)):
            shrink(self._path, self.used)
            if options.durable:
                self.sync()
            os.replace(self._path, path)
        self.leave()
        self._paths.forget(self.number)

    def leave(self) -> None:
        """Let go of the file as it is."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _rewritten(self, path: str, options: Rewriting) -> bool:
        part = self._paths.part(self.number)
        wanted, read, moves = self._without_late()
        try:
            rewrite(read, self._map.identity, wanted, part, options=options)
        except OSError:  # no room for a second copy, so the first is cut down in its place
            if os.path.exists(part):
                os.unlink(part)
            return False
        os.replace(part, path)
        self._moves = moves
        return True

    def moved(self, place: BlockPlace, block: StagedBlock) -> BlockPlace:
        """Where the rows of a block are, once the file is finished."""
        if self._moves is None:
            return place
        firsts = []
        for number, (first, stride) in zip(block.stage.data, place.firsts, strict=True):
            row = self._moves.row(number, first + block.cut * stride)
            firsts.append((first, stride) if row is None else (row - block.cut, 1))
        return BlockPlace(place.segment, firsts)

    def _without_late(self) -> tuple[list[DatasetSpec], Read, Relocation | None]:
        """The data sets of the finished file, in which the late values have some of their own, if they can."""
        wanted = {one.name: msgspec.structs.replace(one, rows=self.used[one.name]) for one in self._wanted}
        rows = {number: self._late.rows(number) for number in self._late.blocks}
        chosen = sorted(rows, key=lambda n: -rows[n] * self._late.row_bytes[n])[:MAX_DATA_SETS]
        chosen = [n for n in chosen if rows[n] and self._late.row_bytes[n] <= MAX_ROW_BYTES and fits(self._infos[n])]
        if not chosen:
            return list(wanted.values()), self._read, None
        names, bases, lines = {}, {}, b""
        for number in sorted(chosen):
            info = self._infos[number]
            folder, _, plain = info.name.partition("/")
            name = self._names.get(number) or dataset_name(folder, plain, wanted)
            names[number], bases[number] = name, wanted[name].rows if name in wanted else 0
            total = bases[number] + rows[number]
            wanted[name] = wanted_of(info, number, name, total)
            lines += line("data", number, msgspec.structs.replace(info, name=name))
        if len(chosen) == len(rows):
            wanted[LATE].rows = 0
        log = np.frombuffer(lines, np.uint8)
        wanted[LOG].rows += log.size
        moves = Relocation(self._late, self.number, names, bases)

        def read(name: str, first: int, count: int) -> Bytes:
            if name != LOG:
                return self._read(name, first, count)
            known = max(0, min(count, self.used[LOG] - first))
            after = max(0, first - self.used[LOG])
            return np.concatenate([self._read(LOG, first, known), log[after : after + count - known]])

        return list(wanted.values()), moves.reading(read), moves

    def _read(self, name: str, first: int, count: int) -> Bytes:
        return read_rows(self._file, self._map.sets[name], first, count)

    def _reserve(self, number: int, nbytes: int, rows: int) -> tuple[int, int] | None:
        if not nbytes:
            return -1, 0
        name = self._names.get(number)
        if name is not None:
            start = self._reserved.get(name, 0)
            if start + rows <= self._map.sets[name].rows:
                self._reserved[name] = start + rows
                return start, 1
        start = -(-self._reserved.get(LATE, 0) // 64) * 64
        if start + rows * nbytes > self._map.sets[LATE].rows:
            return None
        self._reserved[LATE] = start + rows * nbytes
        self._late.reserve(number, start, nbytes)
        return -1 - start, -nbytes

    def _write(self, name: str, first: int, data: Bytes, rows: int) -> None:
        write_rows(self._file, self._map.sets[name], first, data)
        self.used[name] = max(self.used[name], first + rows)


def _write_map(path: str, data: bytes) -> None:
    """Put the map in place whole: without it nothing in a growing file counts."""
    with open(path + ".part", "wb") as file:
        file.write(data)
        file.flush()
        os.fdatasync(file.fileno())
    os.replace(path + ".part", path)


Integers = npt.NDArray[np.int64]


class OverflowBlock(msgspec.Struct):
    """Rows that lie together among the late values, from a byte on."""

    start: int
    rows: int = 0


class OverflowBlocks:
    """What lies among the late values, by number of the data, in the order of the bytes."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[OverflowBlock]] = {}
        self.row_bytes: dict[int, int] = {}

    def reserve(self, number: int, start: int, row_bytes: int) -> None:
        """A block begins at a byte."""
        self.blocks.setdefault(number, []).append(OverflowBlock(start))
        self.row_bytes[number] = row_bytes

    def put(self, number: int, start: int, nbytes: int) -> None:
        """Bytes of a block were written."""
        block = next(block for block in reversed(self.blocks[number]) if block.start <= start)
        block.rows = max(block.rows, (start + nbytes - block.start) // self.row_bytes[number])

    def rows(self, number: int) -> int:
        """How many rows of some data there are."""
        return sum(block.rows for block in self.blocks[number])


class Relocation:
    """Rows that go from the late values to data sets: ``names`` by number, ``bases`` the first row there."""

    def __init__(self, late: OverflowBlocks, segment: int, names: Mapping[int, str], bases: Mapping[int, int]) -> None:
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


MAX_DATA_SETS = 512

MAX_ROW_BYTES = 1 << 30  # a chunk of HDF5 is less than 4 GiB; larger values lie among the late ones

MAX_DIMENSIONS = 31

MIN_TABLE_ROWS = 1 << 16
"""Rows of a table that there is room for in any case; what is late needs some too."""

MAX_LOG_LINE_BYTES = 2048
"""What the log says of one data set takes less than so many bytes."""


class Capacity(msgspec.Struct):
    """What a new segment has to have room for: rows of its tables, and of each data set that is worth one.

    ``rows`` are needed at once, ``weights`` the bytes that came of late, by number of the data.
    """

    rows: Mapping[int, int]
    weights: Mapping[int, int]
    tables: Mapping[str, int]


def planned(infos: Sequence[DataInfo], needs: Capacity, nbytes: int) -> list[DatasetSpec]:
    """The data sets of a segment: those that hold most of what came of late, each with its share of the room."""
    chosen = sorted(needs.weights, key=lambda number: -needs.weights[number])[:MAX_DATA_SETS]
    chosen = [n for n in chosen if 0 < needs.weights[n] and _row_bytes(infos[n]) <= MAX_ROW_BYTES]
    chosen = sorted(n for n in chosen if fits(infos[n]))
    total = sum(needs.weights[number] for number in chosen)
    wanted: dict[str, DatasetSpec] = {}
    for number in chosen:
        info = infos[number]
        share = max(nbytes * needs.weights[number] // total, nbytes // (8 * len(chosen)))
        rows = max(min(share // _row_bytes(info), nbytes // 256), 2 * needs.rows.get(number, 0), 1)
        folder, _, plain = info.name.partition("/")
        name = dataset_name(folder, plain, wanted)
        wanted[name] = wanted_of(info, number, name, rows)
    late = sum(_row_bytes(infos[n]) * rows + 64 for n, rows in needs.rows.items() if n not in chosen)
    wanted[LATE] = DatasetSpec(LATE, "uint8", (), max(nbytes // 16, 2 * late))
    wanted[LOG] = DatasetSpec(
        LOG, "uint8", (), max(nbytes // 64, 4 * needs.tables.get(LOG, 0)) + 2 * MAX_LOG_LINE_BYTES * len(infos)
    )
    records = sum(one.rows for name, one in wanted.items() if name != LATE and name != LOG)
    for table, dtype in TABLES.items():
        rows = min(nbytes // 256, MIN_TABLE_ROWS + 2 * records)
        wanted[table] = DatasetSpec(table, dtype, (), max(rows, 2 * needs.tables.get(table, 0) + 4 * len(infos)))
    wanted[COUNTERS] = DatasetSpec(COUNTERS, COUNTERS_ROW, (), 2)
    return list(wanted.values())


def fits(info: DataInfo) -> bool:
    """Whether HDF5 has data sets of so many dimensions."""
    return len(info.shape) <= MAX_DIMENSIONS


def _row_bytes(info: DataInfo) -> int:
    if info.part == "step":
        return info.step_dtype().itemsize
    return torch_dtype_of(info.dtype).itemsize * int(np.prod(info.shape, dtype=np.int64))


def wanted_of(info: DataInfo, number: int, name: str, rows: int) -> DatasetSpec:
    """The data set of some data."""
    of = attribute(info.name.partition("/")[2])
    attributes = {"number": str(number), "of": of, "part": info.part, "torch_dtype": info.dtype}
    if info.part == "step":
        return DatasetSpec(name, info.step_dtype(), (), rows, attributes)
    return DatasetSpec(name, info.dtype, info.shape, rows, attributes)
