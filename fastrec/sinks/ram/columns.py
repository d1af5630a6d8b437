"""The columns of a RAM sink: how a value gets into a row of a block.

``RowCopier`` is the common case and the hot path: a counter gives the row, and one ``memcpy`` fills it. ``PartsColumn``
is for specs that make several tensors of a value, keep them attached to autograd, or wait for gradients.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping

from torch import Tensor

from fastrec._torch.tensors import check_copyable
from fastrec.events.capture import CaptureSpec, check_gradients
from fastrec.recording._source import Part
from fastrec.sinks._blocks import ROW_BITS, Layout
from fastrec.sinks._copying import is_its_bytes, memcpy, parts_of, watch_gradient
from fastrec.sinks.ram.pool import Block, BlockAllocator, BlockMaker, BlockPool, RowAllocator


class RowCopier:
    """Copies each value into the next row. All values have the layout that the blocks are made for."""

    __slots__ = ("_blocks", "_maker", "_memory", "_rows")

    def __init__(self, blocks: Mapping[int, Block], maker: BlockMaker) -> None:
        self._blocks = blocks
        self._maker = maker
        self._rows = RowAllocator(maker)
        self._use(self._rows.block)

    def append(self, value: Tensor) -> int:
        """Copy a value now, and return its row."""
        return self.append_bytes(value) if is_its_bytes(value) else self._append_slowly(value)

    def append_bytes(self, value: Tensor) -> int:
        """The same for a value that is known to be its bytes, if it has any."""
        start = value.data_ptr()
        if start:
            next_row, stop, origin, nbytes = self._memory
            row = next_row()
            if row < stop:
                memcpy(origin + row * nbytes, start, nbytes)
                return row
            row_of_clone = None if self._rows.free_rows else self._maker.keep_clone(value)
            if row_of_clone is not None:
                return row_of_clone
        return self._append_slowly(value)

    def discard(self, row: int) -> None:
        """Forget a row that nobody has read; it is used again."""
        self._rows.give_back(self._blocks[row >> ROW_BITS], row)

    def _append_slowly(self, value: Tensor) -> int:
        if value.__class__ is not Tensor:
            check_copyable(value)  # the first value of this layout was, but this one may be a shard or a fake
        block, row = self._rows.take()
        try:
            block.parts["activation"].write(row - block.first, value)
        except RuntimeError:
            self._rows.give_back(block, row)
            raise
        if self._memory[1] < self._rows.block.stop:
            self._use(self._rows.block)
        return row

    def _use(self, block: Block) -> None:
        # One tuple that is replaced as a whole: a thread that has read it can't mix the counter of one block with the
        # address of another. The address is that of row 0 of all rows, so that a row needs no subtraction.
        rows = block.parts["activation"]
        self._memory: tuple[Callable[[], int], int, int, int]
        if rows.origin:
            self._memory = (block.next_row, block.stop, rows.origin - block.first * rows.nbytes, rows.nbytes)
        else:
            self._memory = (_past_every_block, block.stop, 0, 0)


_past_every_block: Callable[[], int] = itertools.repeat(1 << 62).__next__
"""A counter of rows that no block has, which sends every value to ``_append_slowly``."""


class PartsColumn:
    """Keeps the parts of each record at the same position of their blocks, or attached clones as they are."""

    def __init__(self, pool: BlockPool, spec: CaptureSpec) -> None:
        self._pool = pool
        self._spec = spec
        self._lock = threading.Lock()
        self._rows: dict[tuple[tuple[Part, Layout], ...], RowAllocator] = {}

    def append(self, value: Tensor) -> int:
        """Keep what the spec makes of a value, and return its row."""
        spec = self._spec
        check_gradients(value, spec)
        parts = parts_of(value, spec)
        if spec.keep_grad:
            block = self._pool.keep(parts)
            row = block.first
        else:
            block, row = self._copy(parts)
        if spec.save_gradient:
            watch_gradient(value, spec, self._gradients_of(block), row)
        return row

    def discard(self, row: int) -> None:
        """Forget a row. It is not used again, because the gradient of a pass that failed may still arrive."""
        self._pool.release([row])

    def _gradients_of(self, block: Block) -> dict[int, Tensor]:
        with self._lock:
            if not isinstance(block.gradients, dict):
                block.gradients = {}
            return block.gradients

    def _copy(self, parts: dict[Part, Tensor]) -> tuple[Block, int]:
        # A transform may give other shapes from value to value.
        layouts = {part: Layout.of(tensor) for part, tensor in parts.items()}
        key = tuple(layouts.items())
        rows = self._rows.get(key)
        if rows is None:
            with self._lock:
                rows = self._rows.get(key)
                if rows is None:
                    rows = self._rows[key] = RowAllocator(BlockAllocator(self._pool, layouts, self._spec))
        block, row = rows.take()
        try:
            for part, tensor in parts.items():
                block.parts[part].write(row - block.first, tensor)
        except RuntimeError:
            self._pool.release([row])
            raise
        return block, row
