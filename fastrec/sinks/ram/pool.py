"""The blocks in which RAM keeps values: made as columns grow, let go when nobody keeps a row of them.

A row is a number that names a block and a position in it, so that a record is a few numbers. Three kinds of block share
the numbers:

- ``Block``: copied values of one layout, one below the other. Those of a column grow from one row to about a MiB.
- ``Block`` with ``own_tensors``: one record whose tensors are its own, such as the attached clones of ``keep_grad``.
- ``UncopiedBlock``: one value that was not copied, because nobody else can reach it (see ``session/pass_batch.py``).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

import msgspec
import torch
from torch import Tensor

from fastrec._torch.tensors import outside_torch_modes
from fastrec.events.capture import CaptureSpec
from fastrec.recording._source import Part
from fastrec.sinks._blocks import MAX_ROWS, ROW_BITS, BlockRows, Layout, RowMaker

# New memory costs page faults, fewer of them in large blocks. But a session whose records are popped or trimmed goes on
# in memory that is warm, and the smaller its blocks are, the less memory it keeps for a few rows.
LARGE_BLOCK_BYTES = 1024 * 1024

SMALL_BLOCK_BYTES = 128 * 1024

MAX_UNCOPIED_PASSES = 256
"""Passes that are kept uncopied at a time: many small tensors would take more room than the values in them."""

MAX_UNCOPIED_VALUES = 4096
"""Values of one pass that can be kept uncopied."""

FIRST_UNCOPIED_BLOCK = 1 << 30
"""Blocks from this number on hold uncopied values; each pass gets ``MAX_UNCOPIED_VALUES`` numbers."""


class Block:
    """Rows that are filled in turn and let go together; the parts of a record have the same position in each part."""

    __slots__ = ("first", "gradients", "next_row", "number", "own_tensors", "parts", "rows_left", "stop")

    def __init__(self, number: int, count: int) -> None:
        self.number = number
        self.first = number << ROW_BITS
        self.stop = self.first + count
        # itertools.count gives each number to one thread, without a lock.
        self.next_row = itertools.count(self.first).__next__
        self.rows_left = count  # that some record may still have
        self.parts: dict[Part, BlockRows | SingleTensor] = {}
        self.own_tensors: Mapping[Part, Tensor] = _NO_TENSORS
        self.gradients: Mapping[int, Tensor] = _NO_GRADIENTS


# Shared, because a session may have very many blocks.
_NO_TENSORS: Mapping[Part, Tensor] = MappingProxyType({})
_NO_GRADIENTS: Mapping[int, Tensor] = MappingProxyType({})

_FULL_BLOCK = Block(0, 0)


class SingleTensor:
    """A value in a tensor of its own, as the only row of a block: a large value is cloned faster than it is copied."""

    __slots__ = ("_value", "nbytes", "origin")

    def __init__(self, value: Tensor, maker: RowMaker) -> None:
        if torch.is_inference_mode_enabled():
            with outside_torch_modes():
                self._value = value.detach().clone()
        else:
            self._value = value.detach().clone()
        self.nbytes = maker.nbytes
        self.origin = 0

    def write(self, index: int, value: Tensor) -> None:
        """Put another value in its place."""
        self._value.copy_(value)

    def read(self) -> Tensor:
        """The value as the only row, with a version counter of its own, as ``BlockRows.read`` explains."""
        with outside_torch_modes():
            return self._value.data.unsqueeze(0)


class UncopiedBlock(Block):
    """One value that was not copied."""

    __slots__ = ()

    def __init__(self, number: int, value: Tensor) -> None:
        super().__init__(number, 1)
        with outside_torch_modes():
            self.own_tensors = {"activation": value.data}  # with a version counter of its own


class UncopiedPass(msgspec.Struct, frozen=True):
    """The values of a pass that were not copied; ``number`` is that of the block of the first value.

    It stands where the rows of a pass would, and its blocks are made when somebody reads them: a training loop that
    pops each pass often reads none of it.
    """

    number: int
    values: list[Tensor]

    @property
    def rows(self) -> range:
        """The rows, in the order of the values: the first row of each block."""
        return range(self.number << ROW_BITS, (self.number + len(self.values)) << ROW_BITS, MAX_ROWS)

    def blocks(self) -> Iterator[UncopiedBlock]:
        """A block for each value."""
        return map(UncopiedBlock, itertools.count(self.number), self.values)


class BlockPool:
    """All blocks of a sink in which some row is kept, by number.

    ``uncopied`` are passes that were kept uncopied and that the pass log has packed. ``takes_uncopied`` says whether
    more passes may be kept like that: only where passes are popped or trimmed, because else they would pile up, and in
    blocks they take less room.
    """

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}
        self.uncopied: dict[int, UncopiedPass] = {}
        self.max_block_bytes = LARGE_BLOCK_BYTES
        self.takes_uncopied = False
        self.next_uncopied_number = itertools.count(FIRST_UNCOPIED_BLOCK, MAX_UNCOPIED_VALUES).__next__
        self._next_number = itertools.count().__next__
        self._makers: dict[tuple[tuple[tuple[Part, Layout], ...], CaptureSpec], Mapping[Part, RowMaker]] = {}
        self._lock = threading.Lock()

    def makers(self, layouts: Mapping[Part, Layout], spec: CaptureSpec) -> Mapping[Part, RowMaker]:
        """What makes the rows of each part; columns of the same layouts share it."""
        key = (tuple(layouts.items()), spec)
        makers = self._makers.get(key)
        if makers is None:
            makers = self._makers[key] = {part: RowMaker(layout, spec) for part, layout in layouts.items()}
        return makers

    def make(self, count: int, makers: Mapping[Part, RowMaker]) -> Block:
        """A new block with room for so many records of these parts."""
        block = Block(self._next_number(), count)
        for part, maker in makers.items():
            block.parts[part] = maker.make(count)
        self.blocks[block.number] = block
        return block

    def keep(self, tensors: dict[Part, Tensor]) -> Block:
        """A block of one record that owns its tensors."""
        block = Block(self._next_number(), 1)
        block.own_tensors = tensors
        self.blocks[block.number] = block
        return block

    def keep_clone(self, part: Part, value: Tensor, maker: RowMaker) -> Block:
        """A block of one record that is a clone of its value."""
        block = Block(self._next_number(), 1)
        block.parts[part] = SingleTensor(value, maker)
        self.blocks[block.number] = block
        return block

    def expect_release(self) -> None:
        """Records are popped or trimmed from now on: keep them in small blocks, or uncopied."""
        self.max_block_bytes = SMALL_BLOCK_BYTES
        self.takes_uncopied = len(self.uncopied) < MAX_UNCOPIED_PASSES

    def add_uncopied(self, uncopied: UncopiedPass) -> range:
        """Hold a pass that was kept uncopied, because its log packs it now; its rows."""
        self.uncopied[uncopied.number] = uncopied
        self.takes_uncopied = len(self.uncopied) < MAX_UNCOPIED_PASSES
        return uncopied.rows

    def release(self, rows: Iterable[int]) -> dict[int, Block | UncopiedPass]:
        """Let go of rows, and of each block in which no other row is kept; return the blocks that the rows are in.

        All rows of a pass are released together.
        """
        blocks, uncopied = self.blocks, self.uncopied
        released: dict[int, Block | UncopiedPass] = {}
        with self._lock:
            for row in rows:
                if row < 0:  # a record without a tensor
                    continue
                number = row >> ROW_BITS
                if number < FIRST_UNCOPIED_BLOCK:
                    block = released[number] = blocks[number]
                    block.rows_left -= 1
                    if not block.rows_left:
                        del blocks[number]
                elif number in uncopied:  # the first of its values, which stands for all of them
                    released[number] = uncopied.pop(number)
        return released


class BlockMaker(Protocol):
    """Makes the blocks that a column fills."""

    def make(self) -> Block:
        """A new block."""

    def keep_clone(self, value: Tensor) -> int | None:
        """Keep a contiguous value as a clone where a block would hold no second one; its row, or None."""


class BlockAllocator:
    """Makes the blocks of one column, each twice as large as the one before, up to a limit in bytes."""

    def __init__(self, pool: BlockPool, layouts: Mapping[Part, Layout], spec: CaptureSpec) -> None:
        self._pool = pool
        self._makers = pool.makers(layouts, spec)
        self._nbytes = max(1, sum(maker.nbytes for maker in self._makers.values()))
        self._count = 1

    def make(self) -> Block:
        """A new block."""
        block = self._pool.make(self._count, self._makers)
        self._count = max(1, min(2 * self._count, self._pool.max_block_bytes // self._nbytes, MAX_ROWS))
        return block

    def keep_clone(self, value: Tensor) -> int | None:
        """Keep a contiguous value as a clone where a block would hold no second one; its row, or None."""
        if 2 * self._nbytes <= self._pool.max_block_bytes:
            return None
        ((part, maker),) = self._makers.items()
        return self._pool.keep_clone(part, value, maker).first if maker.is_same else None


class RowAllocator:
    """Hands out one row after the other, and goes on to a new block when one is full.

    Any number of threads may take rows at once. A row belongs to the thread that the block's counter gave it to, so
    only going on to a new block takes a lock.
    """

    __slots__ = ("_lock", "_maker", "block", "free_rows")

    def __init__(self, maker: BlockMaker) -> None:
        self._maker = maker
        self._lock = threading.Lock()
        self.free_rows: list[tuple[Block, int]] = []
        self.block = maker.make()

    def take(self) -> tuple[Block, int]:
        """A row that nobody else has, and its block."""
        block = self.block
        row = block.next_row()
        while row >= block.stop:
            with self._lock:
                if self.free_rows:
                    return self.free_rows.pop()
                if self.block is block:  # else another thread has gone on already
                    self.block = self._maker.make()
            block = self.block
            row = block.next_row()
        if block.stop - block.first == 1 and self.block is block:
            # It is full now. Were it held until the next value comes, that value could not use its memory, still warm,
            # after the record has been popped.
            self.block = _FULL_BLOCK
        return block, row

    def give_back(self, block: Block, row: int) -> None:
        """Let a row that nobody has read be used again."""
        self.free_rows.append((block, row))
