"""Values on their way to a file: copied into blocks of memory, which are handed over whole and used again."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor, uint8

from fastrec._errors import RecordingFileError, SessionError
from fastrec._torch.tensors import check_copyable, outside_torch_modes
from fastrec.recording._source import Part
from fastrec.sinks._blocks import MAX_ROWS, ROW_BITS, BlockRows, RowMaker
from fastrec.sinks._copying import is_its_bytes, memcpy
from fastrec.sinks.hdf5.layout import Bytes

FIRST_BLOCK = 16 * 1024


class BlockPlace:
    """Where the rows of a block lie: the segment, and for each part where row 0 would be and the way to the next."""

    __slots__ = ("firsts", "segment")

    def __init__(self, segment: int, firsts: Sequence[tuple[int, int]]) -> None:
        self.segment = segment
        self.firsts = firsts


class StagedBlock:
    """Memory for some rows of one stage, and how far they are on their way.

    ``settled`` rows belong to a pass that ended or was dropped; ``top`` is the place after the last of them. Rows up to
    ``checked`` are in the segment with a checksum, and those before ``cut`` in an earlier one.
    """

    __slots__ = ("checked", "cut", "first", "last", "memory", "next_done", "next_row", "number", "place", "settled",
                 "stage", "stop", "top", "values")  # fmt: skip

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
        self.place: BlockPlace | None = None
        self.cut = 0
        self.checked = 0
        self.settled = 0
        self.top = 0

    @property
    def count(self) -> int:
        return self.stop - self.first


class Pool:
    """All blocks that are not settled, and those that wait to be written, of which there is a limit in bytes."""

    def __init__(self, block_bytes: int, queue_bytes: int) -> None:
        self.queue_bytes = queue_bytes
        self.blocks: dict[int, StagedBlock] = {}
        self.stages: list[Stage] = []
        self.changed = threading.Condition()
        self.full: deque[StagedBlock] = deque()
        self.discarded: deque[int] = deque()
        self.queued = self.most_queued = self.written_bytes = 0
        self.waited, self.waited_seconds = 0, 0.0
        self.error: Exception | None = None
        self.told = False
        self._block_bytes = block_bytes
        self._number = itertools.count().__next__
        self._pid = os.getpid()
        self._free_bytes = 0

    @property
    def is_forked(self) -> bool:
        """Whether this is a copy in a forked child, where no thread writes and any lock may be held for ever."""
        return os.getpid() != self._pid

    def exclusively(self, lock: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
        """A lock, but where nobody would ever give it back."""
        return nullcontext() if self.is_forked else lock

    def check_is_own(self) -> None:
        """Raise in a forked child."""
        if self.is_forked:
            raise SessionError(
                "a forked process can't write to the file of its parent; open a recorder of its own in the child, "
                "with a sink such as HDF5Sink('run.{pid}.h5')"
            )

    def most_rows(self, nbytes: int) -> int:
        """How many rows of so many bytes a block may have: all stages together stay below half of the limit."""
        share = self.queue_bytes // (2 * max(1, len(self.stages)))
        return max(1, min(min(self._block_bytes, share) // max(1, nbytes), MAX_ROWS))

    def make(self, stage: Stage, count: int) -> StagedBlock:
        """A block for a stage, once not too much waits to be written."""
        if self.is_forked:  # what is put there is seen by nobody
            return StagedBlock(self._number(), count, stage, *stage.room(count))
        with self.changed:
            if self.queued > self.queue_bytes and not self.error:
                self.wait_until(lambda: self.queued <= self.queue_bytes)
            self.check()
            kept = stage.free.pop() if stage.free and stage.free[-1][0] == count else None
            if kept:
                self._free_bytes -= count * stage.nbytes
        values, memory = kept[1:] if kept else stage.room(count)
        block = StagedBlock(self._number(), count, stage, values, memory)
        self.blocks[block.number] = block
        return block

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Let the loop wait for the writer, which is counted."""
        began = perf_counter()
        self.waited += 1
        self.changed.wait_for(lambda: done() or self.error is not None)
        self.waited_seconds += perf_counter() - began

    def hand_over(self, block: StagedBlock) -> None:
        """All rows of a block are there: it can be written."""
        if self.is_forked:
            return
        with self.changed:
            self.queued += block.count * block.stage.nbytes
            self.most_queued = max(self.most_queued, self.queued)
            self.full.append(block)
            self.changed.notify_all()

    def written(self, block: StagedBlock) -> None:
        """A whole block was written; its memory is used again."""
        stage, nbytes = block.stage, block.count * block.stage.nbytes
        with self.changed:
            self.queued -= nbytes
            self.written_bytes += nbytes
            if self._free_bytes + nbytes <= self.queue_bytes and block.count == stage.next_count:
                stage.free.append((block.count, block.values, block.memory))
                self._free_bytes += nbytes
            self.changed.notify_all()
        block.values, block.memory = [], []
        self.settle(block)

    def settle(self, block: StagedBlock) -> None:
        """Forget a block that was written whole, once no pass can speak of it any more."""
        if not block.memory and block.settled == block.count:
            self.blocks.pop(block.number, None)

    def check(self) -> None:
        """Raise what stopped the writer."""
        if self.error is not None:
            self.told = True
            raise RecordingFileError(f"the recording stopped: {self.error}") from self.error


class Stage:
    """Where the records of one column and layout are staged; ``data`` numbers the data set of each part."""

    def __init__(self, pool: Pool, parts: Sequence[Part], makers: Sequence[RowMaker], data: Sequence[int]) -> None:
        self.parts = parts
        self.makers = makers
        self.data = data
        self.nbytes = sum(maker.nbytes for maker in makers)
        self.free: list[tuple[int, list[BlockRows], list[Bytes]]] = []
        self.next_count = min(max(1, FIRST_BLOCK // max(1, self.nbytes)), pool.most_rows(self.nbytes))
        self.taken = 0  # rows of all blocks but the current one
        self._pool = pool
        self._lock = threading.Lock()
        self.block = pool.make(self, self.next_count)
        pool.stages.append(self)

    def take(self) -> tuple[StagedBlock, int]:
        """A row that nobody else has, and its block."""
        block = self.block
        row = block.next_row()
        while row >= block.stop:
            with self._pool.exclusively(self._lock):
                if self.block is block:
                    self.taken += block.count
                    self.next_count = min(2 * self.next_count, self._pool.most_rows(self.nbytes))
                    self.block = self._pool.make(self, self.next_count)
            block = self.block
            row = block.next_row()
        return block, row

    def done(self, block: StagedBlock) -> None:
        """A row of a block was copied, or never will be."""
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
            self.done(block)
        return row

    def room(self, count: int) -> tuple[list[BlockRows], list[Bytes]]:
        """New memory for so many records, as tensors and as the bytes that the writer sees."""
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
        """The same for a value that is known to be its bytes, if it has any."""
        start = value.data_ptr()
        if start:
            next_row, stop, origin, nbytes, next_done, last, block = self._room
            row = next_row()
            if row < stop:
                memcpy(origin + row * nbytes, start, nbytes)
                if next_done() == last:
                    self._pool.hand_over(block)
                return row
        return self._append_slowly(value)

    def discard(self, row: int) -> None:
        """Forget a row: nothing will ever speak of it, and its room is not used again."""
        self._pool.discarded.append(row)

    def _append_slowly(self, value: Tensor) -> int:
        if value.__class__ is not Tensor:
            check_copyable(value)  # the first value of this layout was, this one may be a shard or a fake
        row = self._stage.put([value])
        if self._room[1] < self._stage.block.stop:
            self._use(self._stage.block)
        return row

    def _use(self, block: StagedBlock) -> None:
        values = block.values  # none where the block was full at once, and is written already
        self._room: tuple[Callable[[], int], int, int, int, Callable[[], int], int, StagedBlock]
        if values and (rows := values[0]).origin:
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
