"""Staging: values on their way to a file, copied into blocks of memory that a thread writes.

    stage = Stage(pool, ["activation"], [RowMaker(layout, spec)], [number])
    row = StagedCopier(pool, stage).append(value)      # one memcpy; the file sees nothing of it yet

The recording loop must not wait for a disk, and handing over single values to another thread costs it ten times as much
as copying them (30 us against 3). So a value is copied into the next row of its stage's block, and only whole blocks go
to the writer, with one queue entry each. Blocks start small and double, so that a site that runs once holds 16 KiB and
one that runs a million times is written a few MiB at a time.

Blocks that were written are used again: copying into memory that the process has touched before takes less than half
the time. How much may wait is limited. When the limit is reached, the loop waits for the writer.

A row is an integer: the number of its block, shifted by ``ROW_BITS``, plus its place in the block. Any number of
threads may take rows of one stage. ``next_row`` and ``next_done`` are counters in C, each call of which is one step
that no other thread can interrupt, so taking a row needs no lock. Rows are taken in order, but may be copied in any
order; the thread that copies the last one hands the block over.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, uint8

from fastrec._errors import RecordingFileError, SessionError
from fastrec._torch.process import FORKS
from fastrec._torch.tensors import check_copyable, outside_torch_modes
from fastrec.recording._source import Part
from fastrec.sinks._blocks import MAX_ROWS, ROW_BITS, BlockRows, RowMaker
from fastrec.sinks._copying import is_its_bytes, memcpy
from fastrec.sinks.hdf5.layout import Bytes, RowRun

FIRST_BLOCK_BYTES = 16 * 1024


class Pool:
    """All blocks that passes may still name, and the queue of those that wait to be written.

    The recording loop and the writer share it. ``changed`` guards the queue and lets each of them wait for the
    other. ``error`` is what stopped the writer.
    """

    def __init__(self, block_bytes: int, queue_bytes: int) -> None:
        self.queue_bytes = queue_bytes
        self.blocks: dict[int, StagedBlock] = {}
        self.stages: list[Stage] = []
        self.changed = threading.Condition()
        self.full: deque[StagedBlock] = deque()
        self.discarded: deque[int] = deque()
        self.queued = self.most_queued = self.written_bytes = 0
        self.n_waits, self.seconds_waited = 0, 0.0
        self.error: Exception | None = None
        self.error_was_raised = False
        self._block_bytes = block_bytes
        self._next_number = itertools.count().__next__
        self._forks = FORKS.count
        self._free_bytes = 0

    @property
    def is_forked(self) -> bool:
        """Whether this is a copy in a forked child, where no thread writes and a lock may be held for ever."""
        return FORKS.count != self._forks

    def unless_forked(self, lock: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
        """A lock to enter; in a forked child nothing, because the thread that held it there does not exist."""
        return nullcontext() if self.is_forked else lock

    def check_not_forked(self) -> None:
        """Raise in a forked child."""
        if self.is_forked:
            raise SessionError(
                "a forked process can't write to the file of its parent; open another recorder in the child, "
                "with a sink such as HDF5Sink('run.{pid}.h5')"
            )

    def max_rows(self, row_bytes: int) -> int:
        """How many rows a block may have: the blocks that all stages fill take half of the queue's limit at most."""
        share = self.queue_bytes // (2 * max(1, len(self.stages)))
        return max(1, min(min(self._block_bytes, share) // max(1, row_bytes), MAX_ROWS))

    def new_block(self, stage: Stage, count: int) -> StagedBlock:
        """A block for a stage, once no more waits to be written than may."""
        if self.is_forked:  # the child may go on with its pass; what it stages nobody will write
            return StagedBlock(self._next_number(), count, stage, *stage.new_memory(count))
        with self.changed:
            if self.queued > self.queue_bytes and not self.error:
                self.wait_until(lambda: self.queued <= self.queue_bytes)
            self.check()
            reused = stage.free.pop() if stage.free and stage.free[-1][0] == count else None
            if reused:
                self._free_bytes -= count * stage.row_bytes
        values, memory = reused[1:] if reused else stage.new_memory(count)
        block = StagedBlock(self._next_number(), count, stage, values, memory)
        self.blocks[block.number] = block
        return block

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Let the loop wait for the writer, and count that it did."""
        began = perf_counter()
        self.n_waits += 1
        self.changed.wait_for(lambda: done() or self.error is not None)
        self.seconds_waited += perf_counter() - began

    def hand_over(self, block: StagedBlock) -> None:
        """Give the writer a block of which all rows were copied."""
        if self.is_forked:
            return
        with self.changed:
            self.queued += block.nbytes
            self.most_queued = max(self.most_queued, self.queued)
            self.full.append(block)
            self.changed.notify_all()

    def reclaim(self, block: StagedBlock) -> None:
        """Take back the memory of a block that was written whole."""
        stage, nbytes = block.stage, block.nbytes
        with self.changed:
            self.queued -= nbytes
            self.written_bytes += nbytes
            # As much as the queue may hold is kept for later, and only blocks of the size that comes next.
            if self._free_bytes + nbytes <= self.queue_bytes and block.count == stage.next_count:
                stage.free.append((block.count, block.values, block.memory))
                self._free_bytes += nbytes
            self.changed.notify_all()
        block.values, block.memory = [], []
        self.forget_if_done(block)

    def forget_if_done(self, block: StagedBlock) -> None:
        """Forget a block that was written whole, once no pass can name its rows any more."""
        if not block.memory and block.settled_count == block.count:
            self.blocks.pop(block.number, None)

    def check(self) -> None:
        """Raise what stopped the writer."""
        if self.error is not None:
            self.error_was_raised = True
            raise RecordingFileError(f"the recording stopped: {self.error}") from self.error


class StagedBlock:
    """Memory for some rows of one stage, and how far they are on their way.

    ``values`` are the rows of each part as tensors, ``memory`` the same memory as bytes; both are empty once the whole
    block was written. A row is settled when its pass has ended or was dropped: ``settled_count`` rows are, and
    ``settled_stop`` is the place after the last of them. ``placement`` says where rows go in the segment that is being
    written: those from ``segment_start`` on, as the ones before are in an earlier segment. Rows before ``checked_stop``
    are written with a checksum.
    """

    __slots__ = ("checked_stop", "first", "last", "memory", "next_done", "next_row", "number", "placement",
                 "segment_start", "settled_count", "settled_stop", "stage", "stop", "values")  # fmt: skip

    def __init__(self, number: int, count: int, stage: Stage, values: list[BlockRows], memory: list[Bytes]) -> None:
        self.number = number
        self.first = number << ROW_BITS
        self.stop = self.first + count
        self.last = count - 1
        self.next_row = itertools.count(self.first).__next__
        self.next_done = itertools.count().__next__
        self.stage = stage
        self.values = values
        self.memory = memory
        self.placement: BlockPlacement | None = None
        self.segment_start = 0
        self.checked_stop = 0
        self.settled_count = 0
        self.settled_stop = 0

    @property
    def count(self) -> int:
        return self.stop - self.first

    @property
    def nbytes(self) -> int:
        return self.count * self.stage.row_bytes

    def settle(self, count: int, stop: int) -> None:
        """Note that ``count`` more rows, the last of them before ``stop``, will not change any more."""
        self.settled_count += count
        self.settled_stop = max(self.settled_stop, stop)


class BlockPlacement(NamedTuple):
    """Where the rows of a block lie: in which segment, and there for each part."""

    segment: int
    runs: Sequence[RowRun]


class Stage:
    """Where the records of one column and layout are staged; ``data`` has the number of each part's data."""

    def __init__(self, pool: Pool, parts: Sequence[Part], makers: Sequence[RowMaker], data: Sequence[int]) -> None:
        self.parts = parts
        self.makers = makers
        self.data = data
        self.row_bytes = sum(maker.nbytes for maker in makers)
        self.free: list[tuple[int, list[BlockRows], list[Bytes]]] = []
        self.next_count = min(max(1, FIRST_BLOCK_BYTES // max(1, self.row_bytes)), pool.max_rows(self.row_bytes))
        self.n_taken = 0  # rows of all blocks but the current one
        self._pool = pool
        self._lock = threading.Lock()
        self.block = pool.new_block(self, self.next_count)
        pool.stages.append(self)

    def take(self) -> tuple[StagedBlock, int]:
        """A row that nobody else has, and its block."""
        block = self.block
        row = block.next_row()
        # Again and again: by the time a thread has the lock, others may have filled the next block too.
        while row >= block.stop:
            with self._pool.unless_forked(self._lock):
                if self.block is block:  # else another thread went on to the next one already
                    self.n_taken += block.count
                    self.next_count = min(2 * self.next_count, self._pool.max_rows(self.row_bytes))
                    self.block = self._pool.new_block(self, self.next_count)
            block = self.block
            row = block.next_row()
        return block, row

    def done(self, block: StagedBlock) -> None:
        """Note that a row of a block was copied, or never will be."""
        if block.next_done() == block.last:
            self._pool.hand_over(block)

    def put(self, tensors: Sequence[Tensor]) -> int:
        """Copy the parts of one record; its row."""
        block, row = self.take()
        try:
            for rows, tensor in zip(block.values, tensors, strict=True):
                rows.write(row - block.first, tensor)
        except RuntimeError:
            self._pool.discarded.append(row)
            raise
        finally:
            self.done(block)  # in any case, or the block would wait for this row for ever
        return row

    def new_memory(self, count: int) -> tuple[list[BlockRows], list[Bytes]]:
        """New memory for ``count`` records, as tensors and as the bytes that the writer sees."""
        values = [maker.make(count) for maker in self.makers]
        with outside_torch_modes():
            return values, [_bytes_of(rows.read(), count) for rows in values]


class StagedCopier:
    """A column that copies each value into the next row of one stage.

    The caller promises values of the layout that the stage is made for.
    """

    __slots__ = ("_pool", "_room", "_stage")

    def __init__(self, pool: Pool, stage: Stage) -> None:
        self._pool = pool
        self._stage = stage
        self._use(stage.block)

    def append(self, value: Tensor) -> int:
        """Copy a value now; its row."""
        return self.append_bytes(value) if is_its_bytes(value) else self._append_slowly(value)

    def append_bytes(self, value: Tensor) -> int:
        """Copy a value that is known to be its bytes; its row."""
        start = value.data_ptr()
        if start:
            # One attribute in place of seven: this runs for every record.
            next_row, stop, origin, row_bytes, next_done, last, block = self._room
            row = next_row()
            if row < stop:
                memcpy(origin + row * row_bytes, start, row_bytes)
                if next_done() == last:
                    self._pool.hand_over(block)
                return row
        return self._append_slowly(value)

    def discard(self, row: int) -> None:
        """Forget a row: nothing will ever name it, and its room is not used again."""
        self._pool.discarded.append(row)

    def _append_slowly(self, value: Tensor) -> int:
        if value.__class__ is not Tensor:
            check_copyable(value)  # the first value of this layout was, this one may be a shard or a fake
        row = self._stage.put([value])
        if self._room[1] < self._stage.block.stop:
            self._use(self._stage.block)
        return row

    def _use(self, block: StagedBlock) -> None:
        values = block.values  # none where another thread filled the block already, and it was written
        self._room: tuple[Callable[[], int], int, int, int, Callable[[], int], int, StagedBlock]
        if values and (rows := values[0]).origin:
            # Where row 0 of all blocks would be: the number of a row, times its bytes, is then the way from there.
            origin = rows.origin - block.first * rows.nbytes
            self._room = (block.next_row, block.stop, origin, rows.nbytes, block.next_done, block.last, block)
        else:
            self._room = (_no_row, block.stop, 0, 0, _no_row, 0, block)


_no_row: Callable[[], int] = itertools.repeat(1 << 62).__next__
"""Past the end of any block: sends each value the long way."""


def _bytes_of(values: Tensor, count: int) -> Bytes:
    if not values.numel():
        return np.empty((count, 0), np.uint8)
    data: Bytes = values.reshape(-1).view(uint8).numpy().reshape(count, -1)
    return data
