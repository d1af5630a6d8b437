"""The blocks of a RAM sink: made as columns grow, let go when nothing in them is kept."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping

from torch import Tensor

from fastrec.events.capture import CaptureSpec
from fastrec.recording._source import Part
from fastrec.sinks._blocks import MAX_ROWS, ROW_BITS, Block, Layout, RowMaker, SingleTensor, UncopiedPass

# New memory costs page faults, fewer in large blocks. But a session whose records are handed over or
# trimmed goes on in memory that is warm, and holds as little of it as its blocks are small.
LARGE_BLOCK = 1024 * 1024

SMALL_BLOCK = 128 * 1024

MAX_UNCOPIED = 256
"""Passes whose values are held as they are: many small tensors would take more room than what is in them."""

MAX_VALUES = 4096
"""Values of one pass that can be held."""

FIRST_HELD = 1 << 30
"""Blocks from this number on are values of held passes."""


class BlockPool:
    """All blocks that hold kept rows, by number."""

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}
        self.held: dict[int, UncopiedPass] = {}
        self.largest = LARGE_BLOCK
        # Whether values that nobody else has are held; a session that hands nothing over packs what it keeps.
        self.holds = False
        self.held_number = itertools.count(FIRST_HELD, MAX_VALUES).__next__
        self._number = itertools.count().__next__
        self._lock = threading.Lock()

    def make(self, count: int, makers: Mapping[Part, RowMaker]) -> Block:
        """A new block with room for so many records of these parts."""
        block = Block(self._number(), count)
        for part, maker in makers.items():
            block.parts[part] = maker.make(count)
        self.blocks[block.number] = block
        return block

    def keep(self, parts: dict[Part, Tensor]) -> Block:
        """A block of one record that owns its tensors."""
        block = Block(self._number(), 1)
        block.kept = parts
        self.blocks[block.number] = block
        return block

    def keep_alone(self, part: Part, value: Tensor, maker: RowMaker) -> Block:
        """A block of one record that is a clone of its value."""
        block = Block(self._number(), 1)
        block.parts[part] = SingleTensor(value, maker)
        self.blocks[block.number] = block
        return block

    def hand_over(self) -> None:
        """What is kept is handed over or trimmed from now on, so that it lies in small blocks, or is held as it is."""
        self.largest = SMALL_BLOCK
        self.holds = len(self.held) < MAX_UNCOPIED

    def add(self, held: UncopiedPass) -> range:
        """Keep the values of a pass that is written down now; their rows."""
        self.held[held.number] = held
        self.holds = len(self.held) < MAX_UNCOPIED
        return held.rows

    def release(self, rows: Iterable[int]) -> dict[int, Block | UncopiedPass]:
        """Let go of rows that are kept no longer, and of each block in which no other row is; their blocks.

        The rows of a pass come together.
        """
        blocks, held = self.blocks, self.held
        found: dict[int, Block | UncopiedPass] = {}
        with self._lock:
            for row in rows:
                if row < 0:
                    continue
                number = row >> ROW_BITS
                if number < FIRST_HELD:
                    block = found[number] = blocks[number]
                    block.left -= 1
                    if not block.left:
                        del blocks[number]
                elif number in held:
                    found[number] = held.pop(number)
        return found


class BlockAllocator:
    """Makes the blocks of one column, each twice as large as the one before, up to a limit in bytes."""

    def __init__(self, pool: BlockPool, layouts: Mapping[Part, Layout], spec: CaptureSpec) -> None:
        self._pool = pool
        self._makers = {part: RowMaker(layout, spec) for part, layout in layouts.items()}
        self._nbytes = max(1, sum(maker.nbytes for maker in self._makers.values()))
        self._count = 1

    def __call__(self) -> Block:
        block = self._pool.make(self._count, self._makers)
        self._count = max(1, min(2 * self._count, self._pool.largest // self._nbytes, MAX_ROWS))
        return block

    def keep(self, value: Tensor) -> int | None:
        """The row of a contiguous value that is kept by itself, where a block would hold no second one."""
        if 2 * self._nbytes <= self._pool.largest:
            return None
        ((part, maker),) = self._makers.items()
        return self._pool.keep_alone(part, value, maker).first if maker.is_same else None
