"""One file of a recording while it is written, from the room that is planned for it to its finished form.

    segment = Segment(paths, identity, infos, capacity, options, descriptor)   # all data sets, in the file
    segment.publish()                                              # from here on readers look at it
    block.placement = segment.place(block)
    segment.put(number, block.placement.runs[0], 0, rows)
    segment.finalize("run.h5", options)

The structure of an HDF5 file must not change while it holds rows that only it holds. To add a data set or to extend
one, HDF5 writes several pieces of the file, one after the other. A process that is killed in between leaves a file that
does not open, and nobody else can open it meanwhile. So a segment gets its structure before its first row, with room
for more than is expected: the more of some data was recorded lately, the more room it gets. The file is sparse, so room
costs nothing until it is used.

What was not planned for (a site that first runs now, one more shape) has no data set. It goes to the overflow set,
which is plain bytes, and gets its own data set in the next segment. When some room is used up, the segment is finalized
and the next one begins.

A finalized file has no spare room. A small one is rewritten, without holes, compressed if that was asked for, and
with the values of the overflow set moved to data sets of their own, so that other tools find them. A large one is only
cut down where it is, because copying it would take as much disk and time again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from fastrec._errors import RecordingExistsError, RecordingFileError
from fastrec.sinks.hdf5.catalog_log import log_line
from fastrec.sinks.hdf5.checksums import add_checksum, check_row, checksum
from fastrec.sinks.hdf5.layout import (
    CHECKED_TABLES,
    CHECKS,
    COUNTERS,
    COUNTERS_ROW,
    LOG,
    MARKS,
    OVERFLOW,
    PART_PREFIXES,
    RECORDS,
    TABLES,
    Addresses,
    Bytes,
    DataInfo,
    FileAddress,
    Identity,
    Integers,
    RowRun,
    Rows,
    read_rows,
    write_rows,
)
from fastrec.sinks.hdf5.options import HDF5Options
from fastrec.sinks.hdf5.paths import Paths, create_file, remove_part, rename_to_free
from fastrec.sinks.hdf5.staging import BlockPlacement, StagedBlock
from fastrec.sinks.hdf5.structure import (
    MAX_DIMENSIONS,
    DatasetSpec,
    ReadRows,
    Rewriting,
    create,
    dataset_name,
    rewrite,
    shrink,
)
from fastrec.sinks.hdf5.system import sync

MAX_REWRITTEN_BYTES = 128 << 20
"""A file of up to this many bytes is rewritten when it is finalized; a larger one keeps holes where it had room."""

MAX_DATA_SETS = 512

MAX_ROW_BYTES = 1 << 30
"""Larger values go to the overflow set: a data set has chunks of whole rows, which in HDF5 are less than 4 GiB."""

MIN_TABLE_ROWS = 1 << 16
"""Rows that each table has room for, whatever is expected: values in the overflow set have rows of tables too."""

MAX_LOG_LINE_BYTES = 2048
"""The most that the log says of one data set."""

OVERFLOW_ALIGNMENT = 64
"""Blocks in the overflow set begin at multiples of this many bytes."""


class Segment:
    """Gives rows their places in a file, and writes them there.

    ``used_rows`` counts the rows in use by data set; ``placed_data`` is the data that has a place here, by number.
    """

    def __init__(
        self,
        paths: Paths,
        identity: Identity,
        infos: Sequence[DataInfo],
        capacity: Capacity,
        options: HDF5Options,
        descriptor: int,
    ) -> None:
        self.number = number = identity.segment
        self._paths = paths
        self._infos = infos  # the writer's own list, which grows
        self._specs = plan_datasets(infos, capacity, options.segment_room())
        self._names = {int(spec.attributes["number"]): spec.name for spec in self._specs if spec.attributes}
        self._path = paths.in_progress(number)
        self._descriptor = descriptor
        self.check_path()
        self._index = create(self._path, identity, self._specs)
        self.used_rows = dict.fromkeys(self._index.sets, 0)
        self.placed_data: dict[int, DataInfo] = {}
        self._reserved_rows: dict[str, int] = {}
        self._reserved_log_bytes = 0  # for what the log has to say of the data that has a place
        self._reserved_checks = 0  # for the last checksum of each block that has a place
        self._new_checks: list[npt.NDArray[np.void]] = []
        self._overflow = OverflowBlocks()
        self._relocation: Relocation | None = None

    def publish(self) -> None:
        """Put the index beside the file, whole: without it nothing in a file in progress counts."""
        path = self._paths.map(self.number)
        remove_part(path + ".part")
        with open(create_file(path + ".part"), "wb") as file:
            file.write(add_checksum(msgspec.json.encode(self._index)))
            file.flush()
            sync(file.fileno())  # or a power cut might leave the name and none of the content
        rename_to_free(path + ".part", path)

    def check_path(self) -> None:
        """Check that the file still has its name: what is written to one that was removed nobody will ever read."""
        try:
            is_there = os.path.samestat(os.stat(self._path, follow_symlinks=False), os.fstat(self._descriptor))
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise RecordingFileError(f"{self._path!r} was removed, renamed or replaced while it was being written")

    def place(self, block: StagedBlock) -> BlockPlacement | None:
        """Room for the rows of a block that are not in an earlier segment; None where there is not enough."""
        data = block.stage.data
        # What the log has to say of new data, and the block's last checksum, are written later: room is kept for both.
        log_bytes = sum(number not in self.placed_data for number in data) * MAX_LOG_LINE_BYTES
        if not self.has_room({LOG: self._reserved_log_bytes + log_bytes, CHECKS: len(data)}):
            return None
        runs = []
        for number, maker in zip(data, block.stage.makers, strict=True):
            run = self._reserve(number, maker.nbytes, block.count - block.segment_start)
            if run is None:
                return None
            runs.append(run._replace(first=run.first - block.segment_start * run.stride))
        self._reserved_log_bytes += log_bytes
        self._reserved_checks += len(data)
        for number in data:
            if number not in self.placed_data:
                name = self._names.get(number, OVERFLOW)
                self.placed_data[number] = msgspec.structs.replace(self._infos[number], name=name)
        return BlockPlacement(self.number, runs)

    def put(self, number: int, run: RowRun, start: int, rows: Bytes) -> None:
        """Write rows of a block, the first of them its row ``start``."""
        if rows.size:
            address = run.address(start)
            self._write(address.dataset, address.row, rows, len(rows) * run.stride)
            if address.dataset == OVERFLOW:
                self._overflow.note_written(number, address.row, rows.size)

    def note_checksum(self, number: int, run: RowRun, start: int, rows: Bytes, checksum: int) -> None:
        """Keep the checksum of rows of a block that were written."""
        if rows.size:
            self._new_checks.append(check_row(number, run.address(start).encode(), len(rows) * run.stride, checksum))

    def note_written(self, block: StagedBlock) -> None:
        """Give up what was reserved for the checksums of a block, which was written whole."""
        self._reserved_checks -= len(block.stage.data)

    def write_checks(self) -> None:
        """Write the checksums that were kept."""
        if self._new_checks:
            self.append(CHECKS, np.concatenate(self._new_checks))
            self._new_checks = []

    def write_counters(self, row: Bytes, written: int) -> None:
        """Write the counters over those before the last ones, which stay whole if this write is cut short."""
        self._write(COUNTERS, written % 2, row, 1)

    def has_room(self, rows_by_table: Mapping[str, int]) -> bool:
        """Whether each table has room for this many more rows."""
        reserved = {CHECKS: len(self._new_checks) + self._reserved_checks}
        return all(
            self.used_rows[table] + reserved.get(table, 0) + rows <= self._index.sets[table].rows
            for table, rows in rows_by_table.items()
        )

    def append(self, table: str, rows: npt.NDArray[np.void] | bytes) -> int:
        """Append rows to a table; the number of the first."""
        data = np.frombuffer(rows if isinstance(rows, bytes) else rows.tobytes(), np.uint8)
        first = self.used_rows[table]
        if data.size:
            self._write(table, first, data, len(rows))
            if table in CHECKED_TABLES:
                self._new_checks.append(check_row(CHECKED_TABLES[table], first, len(rows), checksum(data)))
        return first

    def sync(self) -> None:
        """Wait until the disk has what was written."""
        sync(self._descriptor)

    def finalize(self, path: str, options: HDF5Options) -> None:
        """Make a finished file of it, without spare room, and give it its final name."""
        nbytes = sum(self.used_rows[name] * extent.row_bytes for name, extent in self._index.sets.items())
        rewrites = options.compression is not None or nbytes <= MAX_REWRITTEN_BYTES
        if not rewrites or not self._rewrite(path, Rewriting(options.durable, options.compression)):
            shrink(self._path, self.used_rows)
            if options.durable:
                self.sync()
            self._rename(self._path, path)
        self._close()
        self._paths.remove_in_progress(self.number)

    def abandon(self) -> None:
        """Leave the file as it is: what was flushed can be read, and ``fastrec.recover`` finalizes it."""
        self._close()

    def relocated(self, placement: BlockPlacement, block: StagedBlock) -> BlockPlacement:
        """Where the rows of a block are now that the file is finalized."""
        if self._relocation is None:
            return placement
        runs = []
        for number, run in zip(block.stage.data, placement.runs, strict=True):
            dataset, row = self._relocation.address(number, run.address(block.segment_start))
            moved = run.dataset != dataset
            runs.append(RowRun(dataset, row - block.segment_start, 1) if moved else run)
        return BlockPlacement(placement.segment, runs)

    def _reserve(self, number: int, row_bytes: int, rows: int) -> RowRun | None:
        """Room for rows one after another: in the data's own set, else in the overflow set."""
        if not row_bytes:
            return RowRun(OVERFLOW, 0, 0)  # values without elements take no room anywhere
        name = self._names.get(number)
        if name is not None:
            first = self._reserved_rows.get(name, 0)
            if first + rows <= self._index.sets[name].rows:
                self._reserved_rows[name] = first + rows
                return RowRun(name, first, 1)
        reserved = self._reserved_rows.get(OVERFLOW, 0)
        first = -(-reserved // OVERFLOW_ALIGNMENT) * OVERFLOW_ALIGNMENT
        if first + rows * row_bytes > self._index.sets[OVERFLOW].rows:
            return None
        self._reserved_rows[OVERFLOW] = first + rows * row_bytes
        self._overflow.reserve(number, first, row_bytes)
        return RowRun(OVERFLOW, first, row_bytes)

    def _write(self, name: str, first: int, data: Bytes, rows: int) -> None:
        write_rows(self._descriptor, self._index.sets[name], first, data)
        self.used_rows[name] = max(self.used_rows[name], first + rows)

    def _read(self, name: str, first: int, count: int) -> Bytes:
        return read_rows(self._descriptor, self._index.sets[name], first, count)

    def _rename(self, path: str, final_path: str) -> None:
        """Give a finished file its final name, unless something else got that name since the session began."""
        try:
            rename_to_free(path, final_path)
        except FileExistsError:
            if path != self._path:
                os.unlink(path)
            raise RecordingExistsError(
                f"{final_path!r} appeared while this was recorded, and was left alone; what was recorded is in "
                f"{self._path!r}: move the other file away, and finish this one with fastrec.recover"
            ) from None

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _rewrite(self, path: str, options: Rewriting) -> bool:
        """Rewrite the file under another name; False where there is no room for a second copy."""
        part = self._paths.part(self.number)
        remove_part(part)
        specs, read, relocation = self._without_overflow()
        try:
            rewrite(read, self._index.identity, specs, part, options=options)
        except OSError:
            remove_part(part)
            return False
        self._rename(part, path)
        self._relocation = relocation
        return True

    def _without_overflow(self) -> tuple[list[DatasetSpec], ReadRows, Relocation | None]:
        """The data sets of the finished file, with sets for what is in the overflow set, where HDF5 can have some."""
        specs = {spec.name: msgspec.structs.replace(spec, rows=self.used_rows[spec.name]) for spec in self._specs}
        nbytes = {number: self._overflow.nbytes(number) for number in self._overflow.blocks}
        largest = sorted(nbytes, key=lambda number: -nbytes[number])[:MAX_DATA_SETS]
        moved = sorted(number for number in largest if nbytes[number] and _can_have_dataset(self._infos[number]))
        if not moved:
            return list(specs.values()), self._read, None
        names, first_rows, lines = {}, {}, b""
        for number in moved:
            info = self._infos[number]
            name = self._names.get(number) or _name_for(info, specs)
            names[number], first_rows[number] = name, specs[name].rows if name in specs else 0
            specs[name] = _spec_for(info, number, name, first_rows[number] + self._overflow.rows(number))
            lines += log_line("data", number, msgspec.structs.replace(info, name=name))
        if len(moved) == len(nbytes):
            specs[OVERFLOW].rows = 0
        added_log = np.frombuffer(lines, np.uint8)  # a later line for the same number counts
        specs[LOG].rows += added_log.size
        relocation = Relocation(self._overflow, self.number, names, first_rows)

        def read(name: str, first: int, count: int) -> Bytes:
            if name != LOG:
                return self._read(name, first, count)
            from_file = max(0, min(count, self.used_rows[LOG] - first))
            start = max(0, first - self.used_rows[LOG])
            return np.concatenate([self._read(LOG, first, from_file), added_log[start : start + count - from_file]])

        return list(specs.values()), relocation.relocating(read), relocation


class Capacity(msgspec.Struct):
    """What a new segment has to have room for.

    ``rows`` of each data have places at once; ``recent_bytes`` of each were recorded since the segment before was
    planned. ``table_rows`` are written to each table at once.
    """

    rows: Mapping[int, int]
    recent_bytes: Mapping[int, int]
    table_rows: Mapping[str, int]


def plan_datasets(infos: Sequence[DataInfo], capacity: Capacity, nbytes: int) -> list[DatasetSpec]:
    """The data sets of a segment: of the data of which most was recorded lately, each with its share of the room."""
    recent = capacity.recent_bytes
    largest = sorted(recent, key=lambda number: -recent[number])[:MAX_DATA_SETS]
    chosen = sorted(number for number in largest if 0 < recent[number] and _can_have_dataset(infos[number]))
    total = sum(recent[number] for number in chosen)
    specs: dict[str, DatasetSpec] = {}
    for number in chosen:
        info = infos[number]
        # A share by what came lately, but enough for what comes rarely; and at least what is waiting, twice.
        share = max(nbytes * recent[number] // total, nbytes // (8 * len(chosen)))
        rows = max(min(share // info.row_bytes(), nbytes // 256), 2 * capacity.rows.get(number, 0), 1)
        name = _name_for(info, specs)
        specs[name] = _spec_for(info, number, name, rows)
    n_rows = sum(spec.rows for spec in specs.values())
    waiting = sum(
        infos[number].row_bytes() * rows + OVERFLOW_ALIGNMENT
        for number, rows in capacity.rows.items()
        if number not in chosen
    )
    specs[OVERFLOW] = DatasetSpec(OVERFLOW, "uint8", (), max(nbytes // 16, 2 * waiting))
    log_bytes = max(nbytes // 64, 4 * capacity.table_rows.get(LOG, 0)) + 2 * MAX_LOG_LINE_BYTES * len(infos)
    specs[LOG] = DatasetSpec(LOG, "uint8", (), log_bytes)
    for table, dtype in TABLES.items():
        rows = min(nbytes // 256, MIN_TABLE_ROWS + 2 * n_rows)
        rows = max(rows, 2 * capacity.table_rows.get(table, 0) + 4 * len(infos))
        specs[table] = DatasetSpec(table, dtype, (), rows)
    specs[COUNTERS] = DatasetSpec(COUNTERS, COUNTERS_ROW, (), 2)
    return list(specs.values())


def _can_have_dataset(info: DataInfo) -> bool:
    return len(info.shape) <= MAX_DIMENSIONS and info.row_bytes() <= MAX_ROW_BYTES


def _name_for(info: DataInfo, taken: Mapping[str, DatasetSpec]) -> str:
    folder, _, text = info.name.partition("/")
    return dataset_name(folder, text, taken)


def _spec_for(info: DataInfo, number: int, name: str, rows: int) -> DatasetSpec:
    return DatasetSpec.of_data(name, info, number, info.name.partition("/")[2], rows)


class OverflowBlock(msgspec.Struct):
    """Rows that lie one after another in the overflow set, from a byte on."""

    first_byte: int
    rows: int = 0


class OverflowBlocks:
    """What lies in the overflow set, by number of the data, in the order of the bytes."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[OverflowBlock]] = {}
        self.row_bytes: dict[int, int] = {}

    def reserve(self, number: int, first_byte: int, row_bytes: int) -> None:
        """Note that a block will begin at a byte."""
        self.blocks.setdefault(number, []).append(OverflowBlock(first_byte))
        self.row_bytes[number] = row_bytes

    def note_written(self, number: int, first_byte: int, nbytes: int) -> None:
        """Note that bytes of a block were written."""
        block = next(block for block in reversed(self.blocks[number]) if block.first_byte <= first_byte)
        block.rows = max(block.rows, (first_byte + nbytes - block.first_byte) // self.row_bytes[number])

    def rows(self, number: int) -> int:
        """How many rows of some data there are."""
        return sum(block.rows for block in self.blocks[number])

    def nbytes(self, number: int) -> int:
        """How many bytes they take."""
        return self.rows(number) * self.row_bytes[number]


class Relocation:
    """Moves values from the overflow set to data sets, while a file is rewritten.

    ``names`` are those of the data sets, by number of the data; ``first_rows`` the rows of them to which the first
    value goes, as a set may have had room for some.
    """

    def __init__(
        self, overflow: OverflowBlocks, segment: int, names: Mapping[int, str], first_rows: Mapping[int, int]
    ) -> None:
        self._overflow = overflow
        self._segment = segment
        self._names = names
        self._numbers = {name: number for number, name in names.items()}
        self._first_rows = first_rows
        self._blocks: dict[int, tuple[Integers, Integers]] = {}
        for number in names:
            blocks = overflow.blocks[number]
            counts = np.array([block.rows for block in blocks], np.int64)
            first_bytes = np.array([block.first_byte for block in blocks], np.int64)
            self._blocks[number] = first_bytes, first_rows[number] + np.cumsum(counts) - counts

    def address(self, number: int, address: FileAddress) -> FileAddress:
        """Where a value goes, or stays."""
        if number not in self._names or address.dataset != OVERFLOW:
            return address
        return FileAddress(self._names[number], int(self._new_rows(number, np.array([address.row]))[0]))

    def relocating(self, read: ReadRows) -> ReadRows:
        """A function that reads the file as if the values lay where they go to."""

        def read_relocated(name: str, first: int, count: int) -> Bytes:
            if name in self._numbers:
                return self._read_values(read, name, first, count)
            data = read(name, first, count)
            if name in (RECORDS, MARKS):
                self._change_addresses(data.view(TABLES[name]))
            elif name == CHECKS:
                self._change_checks(data.view(TABLES[name]), read_relocated)
            return data

        return read_relocated

    def _new_rows(self, number: int, old_bytes: Integers) -> Integers:
        first_bytes, first_rows = self._blocks[number]
        block = np.searchsorted(first_bytes, old_bytes, side="right") - 1
        rows: Integers = first_rows[block] + (old_bytes - first_bytes[block]) // self._overflow.row_bytes[number]
        return rows

    def _change_addresses(self, table: Rows) -> None:
        for prefix in PART_PREFIXES.values():
            if prefix + "row" not in (table.dtype.names or ()):
                continue
            addresses = Addresses(table[prefix + "row"])
            in_this_segment = addresses.in_overflow & (table[prefix + "segment"] == self._segment)
            for number in self._names:
                moved = in_this_segment & (table[prefix + "data"] == number)
                rows = self._new_rows(number, addresses[moved].overflow_bytes)
                table[prefix + "row"][moved] = Addresses.of(rows).encoded

    def _change_checks(self, table: Rows, read: ReadRows) -> None:
        addresses = Addresses(table["row"])
        for number in self._names:
            moved = addresses.in_overflow & (table["data"] == number)
            rows = self._new_rows(number, addresses[moved].overflow_bytes)
            table["row"][moved] = Addresses.of(rows).encoded
            table["count"][moved] //= self._overflow.row_bytes[number]
        for name in (RECORDS, MARKS):  # their rows hold addresses, which changed
            for i in np.flatnonzero(table["data"] == CHECKED_TABLES[name]).tolist():
                table["checksum"][i] = checksum(read(name, int(table["row"][i]), int(table["count"][i])))

    def _read_values(self, read: ReadRows, name: str, first: int, count: int) -> Bytes:
        """Rows of a data set: those that it had, then those of the blocks in the overflow set."""
        number = self._numbers[name]
        row_bytes, done = self._overflow.row_bytes[number], self._first_rows[number]
        pieces: list[Bytes] = [read(name, first, min(first + count, done) - first)] if first < done else []
        for block in self._overflow.blocks[number]:
            start, stop = max(first, done), min(first + count, done + block.rows)
            if start < stop:
                first_byte = block.first_byte + (start - done) * row_bytes
                pieces.append(read(OVERFLOW, first_byte, (stop - start) * row_bytes))
            done += block.rows
        return pieces[0] if len(pieces) == 1 else np.concatenate([piece.reshape(-1) for piece in pieces])
