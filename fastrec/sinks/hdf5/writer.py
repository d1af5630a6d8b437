"""The writer: the thread that owns the files of a session, and puts in them what the recording loop staged.

Full blocks are written as they come. Once in a while, by default once a second, a flush writes everything of the passes
that ended: the rows of blocks that are not full yet, then the log, the records, the passes, the marked steps, the
checksums and the counters.

This order is what makes a growing file readable at any moment, and after a kill. Whatever a row names is in the file
before the row is, and a row is whole where its last byte says so. A process that is killed between two writes leaves
values that no record names, never a record of a value that is not there. The kernel keeps what was written when the
process is gone; only for a power cut does ``durable`` wait for the disk.

Nobody may wait for this thread for ever. Whatever stops it is kept in the pool, and raised by the user's next call.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
from collections import deque
from collections.abc import Sequence
from multiprocessing.util import Finalize
from time import perf_counter, time

import msgspec
import numpy as np

from fastrec._errors import FastrecError, FastrecWarning
from fastrec.events.sites import Catalog
from fastrec.recording._source import OUTCOMES, PASS_DTYPE
from fastrec.sinks._blocks import MAX_ROWS, ROW_BITS
from fastrec.sinks._pass_table import MAX_ENDED, EndedPasses
from fastrec.sinks.hdf5.append import claim_first_segment
from fastrec.sinks.hdf5.catalog_log import CatalogLog, log_line
from fastrec.sinks.hdf5.checksums import ChecksumWorker, Counters, checksum
from fastrec.sinks.hdf5.layout import (
    CHECKS,
    LOG,
    MARK_ROW,
    MARKS,
    OVERFLOW,
    PART_PREFIXES,
    PASS_ROW,
    PASSES,
    RECORD_ROW,
    RECORDS,
    Addresses,
    Bytes,
    DataInfo,
    Integers,
    Rows,
)
from fastrec.sinks.hdf5.options import HDF5Options
from fastrec.sinks.hdf5.paths import Paths
from fastrec.sinks.hdf5.process import current_process
from fastrec.sinks.hdf5.segment import Capacity, Segment
from fastrec.sinks.hdf5.staging import Pool, StagedBlock
from fastrec.sinks.hdf5.virtual import write_virtual_segments

FLUSH_EARLY = 0.8
"""A flush begins after this share of ``flush_seconds``, so that it has time to end within them."""

EXIT_PRIORITY = 10
"""At the end of a process, before multiprocessing ends its own children (0)."""

MAX_WAITING_PASSES = 8 * MAX_ENDED
"""How many passes that ended may wait for the writer before the loop waits for it."""

Mark = tuple[int, int]
"""A phase, and the row in which the columns of the step were staged."""


class Writer:
    """Writes a session. The recording loop adds to ``ended``, ``marks``, ``infos`` and ``counters``."""

    def __init__(self, pool: Pool, paths: Paths, catalog: Catalog, options: HDF5Options) -> None:
        self.ended = EndedPasses()
        self.marks: deque[Mark] = deque()
        self.infos: list[DataInfo] = []
        self.counters = Counters()
        self.passes_flushed = self.records_flushed = 0
        self._pool = pool
        self._paths = paths
        self._catalog = catalog
        self._options = options
        self._began = time() - (perf_counter() - catalog.began)
        self._log = CatalogLog(catalog)
        self._unwritten_log = b""
        self._logged_data: set[int] = set()  # data of which the log of this segment says what it is
        self._segment: Segment | None = None
        self._block_writer = BlockWriter()
        self._taken_rows: dict[int, int] = {}  # of each data, when the segment was planned
        # The number of the flush that is wanted, and of those that last began and ended.
        self._flush_wanted = self._flush_begun = self._flush_done = 0
        self._closing = self._closed = False
        self._n_passes_written = self._n_empty_flushed = self._n_counters_written = self._highest_begun = 0
        self._process = current_process(options.role)
        claim = claim_first_segment(paths, options, catalog)
        self._identity, self.earlier_shapes = claim.identity, claim.shapes
        self._claimed: int | None = claim.descriptor  # of the file that the next segment is written to
        # A daemon, so that a recorder which nobody closes does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="fastrec-writer", daemon=True)
        self._thread.start()
        # Both: a process that multiprocessing started ends without atexit, and elsewhere a Finalize runs so late that
        # h5py has cleaned up already (what was registered last runs first).
        atexit.register(self._flush_at_exit)
        self._at_exit = Finalize(None, self._flush_at_exit, exitpriority=EXIT_PRIORITY)

    def wake(self) -> None:
        """Ask for a flush soon; wait only where far too much waits for it already."""
        pool = self._pool
        with pool.changed:
            self._flush_wanted = self._flush_begun + 1
            pool.changed.notify_all()
            if len(self.ended) >= MAX_WAITING_PASSES:
                pool.wait_until(lambda: len(self.ended) < MAX_WAITING_PASSES)

    def flush(self) -> None:
        """Return once everything of the passes that ended is in the file."""
        pool = self._pool
        with pool.changed:
            # A flush that is under way may have begun before the last pass ended, so it takes the next one.
            self._flush_wanted = number = self._flush_begun + 1
            pool.changed.notify_all()
            pool.changed.wait_for(lambda: self._flush_done >= number or pool.error is not None)
        pool.check()

    def close(self) -> None:
        """Write all that is left and finish the file."""
        self._ignore_exit()
        with self._pool.changed:
            self._closing = True
            self._pool.changed.notify_all()
        self._thread.join()

    def _ignore_exit(self) -> None:
        self._at_exit.cancel()
        atexit.unregister(self._flush_at_exit)

    def _flush_at_exit(self) -> None:
        """Write what is left of a recorder that nobody closed, and say so."""
        if self._pool.is_forked or not self._thread.is_alive():
            return
        self._ignore_exit()
        try:
            self.flush()
            state = "everything was flushed"
        except FastrecError as error:
            state = f"what was not flushed yet is lost ({error})"
        warnings.warn(
            f"the recorder that writes {self._paths.path!r} was never closed; {state}. Use it in a `with` block; "
            f"fastrec.recover({self._paths.path!r}) finishes the file now",
            FastrecWarning,
            stacklevel=1,
        )

    def _run(self) -> None:
        # Whatever it is that stops this thread has to reach the user, who would wait for ever otherwise: a
        # KeyboardInterrupt or SystemExit too, which a signal handler or a tool may raise in any thread.
        try:
            self._work()
        except BaseException as error:
            with self._pool.changed:
                self._pool.error = error
                self._pool.changed.notify_all()
            if self._segment is not None:
                self._segment.abandon()
        self._block_writer.close()
        if self._claimed is not None:
            os.close(self._claimed)

    def _work(self) -> None:
        pool, seconds = self._pool, FLUSH_EARLY * self._options.flush_seconds
        due = perf_counter() + seconds
        while True:
            with pool.changed:
                pool.changed.wait_for(
                    lambda: self._has_blocks() or self._flush_wanted > self._flush_done or self._closing,
                    max(0.0, due - perf_counter()),
                )
                # Read once, under the lock: what is asked for from here on is for the next turn.
                closing = self._closing
                flushes = closing or self._flush_wanted > self._flush_done or perf_counter() >= due
                self._flush_begun += flushes
                full = [pool.full.popleft() for _ in range(len(pool.full))]
            for block in full:
                self._write_whole(block)
            if flushes:
                due = perf_counter() + seconds
                self._write_batch(FlushBatch(self.ended, self.marks))
                with pool.changed:
                    self._flush_done = self._flush_begun
                    pool.changed.notify_all()
            if closing:
                return self._finish()

    def _has_blocks(self) -> bool:
        """Whether full blocks are to be written now.

        Before the first segment there is a wait for more of them, as they show of what there will be how much.
        """
        pool = self._pool
        enough = min(pool.queue_bytes, self._options.segment_bytes) // 8
        return bool(pool.full) and (self._segment is not None or pool.queued >= enough)

    def _write_whole(self, block: StagedBlock) -> None:
        segment = self._segment or self._next_segment()
        while not self._place(segment, block):
            segment = self._next_segment()
        self._block_writer.write_whole(segment, block)
        self._pool.reclaim(block)

    def _write_batch(self, batch: FlushBatch) -> None:
        """Write everything of the passes that ended, what is named before what names it."""
        if not batch and not self._counters_changed():
            return
        pool, durable = self._pool, self._options.durable
        touched = [pool.blocks[number] for number in batch.block_numbers.tolist()]
        staged = [block for block in touched if block.memory]
        segment = self._segment_with_room(staged, batch)
        self._settle(batch, touched)
        for block, first in zip(touched, batch.first_rows.tolist(), strict=True):
            if block.memory:
                self._block_writer.write_settled(segment, block, first)
        segment.append(LOG, self._log_lines(batch))
        first_record = segment.append(RECORDS, batch.records(touched))
        if durable:
            segment.sync()
        segment.append(PASSES, batch.passes(first_record, self._catalog.began))
        segment.append(MARKS, batch.mark_rows(touched))
        segment.write_checks()
        self._highest_begun = max(self._highest_begun, batch.begun)
        counters = self._write_counters(segment)
        if durable:
            segment.sync()
        segment.check_path()
        self._unwritten_log = b""
        self._logged_data.update(segment.placed_data)
        self._n_passes_written += len(batch.table)
        self._n_empty_flushed = counters.empty
        self.passes_flushed = self._n_passes_written + counters.empty
        self.records_flushed += len(batch.rows)
        for block in touched:
            pool.forget_if_done(block)

    def _settle(self, batch: FlushBatch, touched: list[StagedBlock]) -> None:
        """Note which rows will not change any more: those of passes that ended or were dropped."""
        for block, count, last in zip(touched, batch.counts.tolist(), batch.last_rows.tolist(), strict=True):
            block.settle(count, last + 1)
        discarded = self._pool.discarded
        for row in [discarded.popleft() for _ in range(len(discarded))]:
            block = self._pool.blocks[row >> ROW_BITS]
            block.settle(1, (row & (MAX_ROWS - 1)) + 1)
            self._pool.forget_if_done(block)

    def _counters_changed(self) -> bool:
        """Whether passes that kept nothing ended since the last flush, or the first ones of all."""
        if self._segment is None:
            return self.counters.begun > 0
        return self.counters.empty != self._n_empty_flushed

    def _write_counters(self, segment: Segment) -> Counters:
        counters = self.counters.copy()
        counters.begun, counters.closed = max(counters.begun, self._highest_begun), self._closed
        self._n_counters_written += 1
        segment.write_counters(counters.row(self._n_counters_written), self._n_counters_written)
        return counters

    def _log_lines(self, batch: FlushBatch | None) -> bytes:
        """What the log of this segment does not say yet."""
        self._unwritten_log += b"".join(self._log.lines())
        return self._unwritten_log + self._data_lines() + (b"" if batch is None else batch.log_lines(self._catalog))

    def _data_lines(self) -> bytes:
        placed = {} if self._segment is None else self._segment.placed_data
        return b"".join(
            log_line("data", number, info) for number, info in placed.items() if number not in self._logged_data
        )

    def _segment_with_room(self, blocks: list[StagedBlock], batch: FlushBatch) -> Segment:
        """A segment that has room for all of a batch, and in which all of these blocks have their places."""
        segment = self._segment or self._next_segment(batch, blocks)
        # A new segment places all of the blocks, so that rows lie in their order there, as other tools see them.
        while not (
            all(self._place(segment, block) for block in blocks) and segment.has_room(self._table_rows(batch, blocks))
        ):
            segment = self._next_segment(batch, blocks)
        return segment

    def _place(self, segment: Segment, block: StagedBlock) -> bool:
        """Give a block its place, if it has none; whether it has one then."""
        if block.placement is None:
            block.placement = segment.place(block)
        return block.placement is not None

    def _table_rows(self, batch: FlushBatch, blocks: Sequence[StagedBlock]) -> dict[str, int]:
        """How many rows a flush writes to each table."""
        return {
            LOG: len(self._log_lines(batch)),
            RECORDS: len(batch.rows),
            PASSES: len(batch.table),
            MARKS: len(batch.marks),
            CHECKS: 3 + sum(len(block.stage.data) for block in blocks),
        }

    def _next_segment(self, batch: FlushBatch | None = None, blocks: Sequence[StagedBlock] = ()) -> Segment:
        """Finalize the segment and go on in a new one; blocks that are still being filled go on there too."""
        number = self._identity.segment
        if self._segment is not None:
            number = self._segment.number + 1
            # Claimed first: at each moment there is a locked file, which says that somebody writes here.
            self._claimed = self._paths.claim(number, locking=self._options.locking)
            self._finalize(self._segment, self._paths.finalized(number - 1))
        rows = self._free_blocks()
        self._log.restart()
        self._logged_data = set()
        facts = {"header": self._catalog.header, "began": self._began, "flush_seconds": self._options.flush_seconds}
        # Asked for here and not earlier: a launcher may make the process group when the block has begun.
        process = current_process(self._options.role, self._process)
        self._identity = msgspec.structs.replace(self._identity, rank=process.rank)
        facts["process"] = msgspec.to_builtins(process)
        if not self._options.locking:
            facts["locking"] = False  # `recover` can't see then whether somebody writes here
        self._unwritten_log = log_line("session", self._identity.session, facts)
        table_rows = {} if batch is None else self._table_rows(batch, blocks)
        table_rows[LOG] = len(self._log_lines(batch))
        capacity = Capacity(rows, self._recent_bytes(), table_rows)
        identity = self._identity.of_segment(number)
        assert self._claimed is not None
        segment = Segment(self._paths, identity, self.infos, capacity, self._options, self._claimed)
        self._segment, self._claimed = segment, None
        # What a session counts, its last file says: so this one must say it from the moment in which it is there.
        self._write_counters(segment)
        segment.publish()
        return segment

    def _finalize(self, segment: Segment, path: str) -> None:
        """Write what later segments may name and the checksums that had to wait, and finalize a segment."""
        lines = self._log_lines(None)
        # Room is always left for what the log has to say of data; the next segment's log has all of the rest.
        segment.append(LOG, lines if segment.has_room({LOG: len(lines)}) else self._data_lines())
        for block in list(self._pool.blocks.values()):
            if block.memory and block.placement is not None and block.settled_stop > block.checked_stop:
                self._block_writer.write_copy(segment, block)
        segment.write_checks()
        self._write_counters(segment)
        segment.finalize(path, self._options)
        self._segment = None
        for block in list(self._pool.blocks.values()):
            placement = block.placement
            if not block.memory and placement is not None and placement.segment == segment.number:
                block.placement = segment.relocated(placement, block)

    def _free_blocks(self) -> dict[int, int]:
        """Take the places from all blocks that are not full; how many rows of each data need new ones."""
        rows: dict[int, int] = {}
        # A list is made of them in one step; the loop adds blocks meanwhile, for which a dict would raise.
        for block in list(self._pool.blocks.values()):
            if not block.memory:
                continue
            if block.placement is not None:
                block.placement = None
                # Where several threads record, a row before the last settled one may still be on its way. Then the
                # whole block goes on in the next segment.
                block.segment_start = block.settled_stop if block.settled_count == block.settled_stop else 0
                block.checked_stop = block.segment_start
            for number in block.stage.data:
                rows[number] = rows.get(number, 0) + block.count - block.segment_start
        return rows

    def _recent_bytes(self) -> dict[int, int]:
        """How many bytes of each data came since this was last asked."""
        recent: dict[int, int] = {}
        for stage in list(self._pool.stages):
            for number, maker in zip(stage.data, stage.makers, strict=True):
                # The block that is being filled counts half, as nobody knows how full it is.
                rows = stage.n_taken + stage.next_count // 2 - self._taken_rows.get(number, 0)
                recent[number] = maker.nbytes * max(rows, 1)
                self._taken_rows[number] = stage.n_taken
        return recent

    def _finish(self) -> None:
        """Give the last segment the name that the recording has, or its own where there are others."""
        segment = self._segment or self._next_segment()
        self._closed = True
        number = segment.number
        self._finalize(segment, self._paths.finalized(number) if number else self._paths.path)
        # Where a killed session left a file in progress, that has to be recovered first.
        if number and all(os.path.exists(self._paths.finalized(n)) for n in range(number + 1)):
            write_virtual_segments(self._paths, number + 1)


class BlockWriter:
    """Writes rows of blocks that have their places in a segment, with checksums where the rows are settled."""

    def __init__(self) -> None:
        self._checksums = ChecksumWorker()

    def write_whole(self, segment: Segment, block: StagedBlock) -> None:
        """Write a full block."""
        _wait_for_device(block)
        self._write_checked(segment, block, block.count)
        segment.note_written(block)

    def write_settled(self, segment: Segment, block: StagedBlock, first: int) -> None:
        """Write the rows that a flush is about, the first of them given; with a checksum where none can still change.

        Where several threads record, a row in between may belong to a pass that goes on, and be copied at this moment.
        """
        _wait_for_device(block)
        if block.settled_count == block.settled_stop:
            self._write_checked(segment, block, block.settled_stop)
        else:
            _put(segment, block, first, [memory[first : block.settled_stop] for memory in block.memory])

    def write_copy(self, segment: Segment, block: StagedBlock) -> None:
        """Write rows of which some may be changing at this moment: from a copy, so that file and checksum agree."""
        start, stop = block.checked_stop, block.settled_stop
        parts = [memory[start:stop].copy() for memory in block.memory]
        _put(segment, block, start, parts)
        _note_checksums(segment, block, start, parts, [checksum(part) for part in parts])

    def close(self) -> None:
        """End the thread that computes checksums."""
        self._checksums.close()

    def _write_checked(self, segment: Segment, block: StagedBlock, stop: int) -> None:
        start, block.checked_stop = block.checked_stop, stop
        parts = [memory[start:stop] for memory in block.memory]
        sums = self._checksums.checksums(parts, lambda: _put(segment, block, start, parts))
        _note_checksums(segment, block, start, parts, sums)


def _put(segment: Segment, block: StagedBlock, start: int, parts: Sequence[Bytes]) -> None:
    assert block.placement is not None
    for number, run, rows in zip(block.stage.data, block.placement.runs, parts, strict=True):
        segment.put(number, run, start, rows)


def _note_checksums(
    segment: Segment, block: StagedBlock, start: int, parts: Sequence[Bytes], sums: Sequence[int]
) -> None:
    assert block.placement is not None
    for number, run, rows, value in zip(block.stage.data, block.placement.runs, parts, sums, strict=True):
        segment.note_checksum(number, run, start, rows, value)


def _wait_for_device(block: StagedBlock) -> None:
    """Wait for copies from a device that are under way."""
    for maker, rows in zip(block.stage.makers, block.values, strict=True):
        if maker.pinned_for is not None:
            rows.read()


class FlushBatch:
    """The passes and marks that ended since the last flush, as rows for the tables.

    ``block_numbers`` are the blocks that hold their values, in order; ``first_rows`` and ``last_rows`` the places of
    the first and the last of them in each block, ``counts`` how many there are.
    """

    def __init__(self, ended: EndedPasses, marks: deque[Mark]) -> None:
        # Marks first: a step that is read here must not come before the passes that it closed.
        self.marks = [marks.popleft() for _ in range(len(marks))]
        self.table = ended.take()
        self._passes = self.table.read_passes()
        self.rows = np.array(self.table.rows, np.int64)
        self._staged_marks = np.array([row for _, row in self.marks], np.int64)
        staged = np.concatenate([self.rows[self.rows >= 0], self._staged_marks])
        places = staged & (MAX_ROWS - 1)
        self.block_numbers, which, self.counts = np.unique(staged >> ROW_BITS, return_inverse=True, return_counts=True)
        self.last_rows = np.zeros(len(self.block_numbers), np.int64)
        np.maximum.at(self.last_rows, which, places)
        self.first_rows = np.full(len(self.block_numbers), MAX_ROWS)
        np.minimum.at(self.first_rows, which, places)

    def __bool__(self) -> bool:
        return bool(len(self.table) or self.marks)

    @property
    def begun(self) -> int:
        """One more than the highest index of its passes."""
        return int(self._passes["pass_index"].max(initial=-1)) + 1

    def log_lines(self, catalog: Catalog) -> bytes:
        """What the log says of single passes."""
        lines = [log_line("sample", index, sample) for index, sample in self.table.samples.items()]
        halted = self._passes["pass_index"][self._passes["outcome"] == OUTCOMES.index("halted")].tolist()
        lines += [log_line("halted", index, catalog.halted.get(index, "")) for index in halted]
        return b"".join(lines)

    def records(self, blocks: Sequence[StagedBlock]) -> Rows:
        """The rows of records, once each of the blocks has its place."""
        records = np.zeros(len(self.rows), RECORD_ROW)
        records["variant"], records["time"] = self.table.metas, self.table.times
        records["data"] = records["transformed_data"] = -1
        kept = np.flatnonzero(self.rows >= 0)
        for part, prefix in PART_PREFIXES.items():
            columns = self._located(blocks, self.rows[kept], part)
            for name, values in zip(("segment", "data", "row"), columns, strict=True):
                records[prefix + name][kept] = values
        return records

    def passes(self, first_record: int, began: float) -> Rows:
        """The rows of passes, if their records are written from a row on; the session began at a time."""
        passes = np.zeros(len(self._passes), PASS_ROW)
        for name in PASS_DTYPE.names or ():
            passes[name] = self._passes[name]
        passes["started"] -= began
        passes["first"] += first_record
        passes["ok"] = 1
        return passes

    def mark_rows(self, blocks: Sequence[StagedBlock]) -> Rows:
        """The rows of marked steps, once each of the blocks has its place."""
        marks = np.zeros(len(self.marks), MARK_ROW)
        marks["phase"], marks["ok"] = [phase for phase, _ in self.marks], 1
        marks["segment"], marks["data"], marks["row"] = self._located(blocks, self._staged_marks, "step")
        return marks

    def _located(self, blocks: Sequence[StagedBlock], rows: Integers, part: str) -> tuple[Integers, Integers, Integers]:
        """The segment, data and address of one part of staged rows; data -1 where it was not kept."""
        facts: list[tuple[int, int, int, int, bool]] = []
        for block in blocks:
            assert block.placement is not None
            if part in block.stage.parts:
                i = block.stage.parts.index(part)
                dataset, first, stride = block.placement.runs[i]
                facts.append((block.placement.segment, block.stage.data[i], first, stride, dataset == OVERFLOW))
            else:
                facts.append((0, -1, 0, 0, False))
        block_of_row = np.searchsorted(self.block_numbers, rows >> ROW_BITS)
        segment, data, first, stride, in_overflow = np.array(facts, np.int64).reshape(-1, 5)[block_of_row].T
        addresses = Addresses.of(first + (rows & (MAX_ROWS - 1)) * stride, in_overflow.astype(np.bool_))
        return segment, data, addresses.encoded
