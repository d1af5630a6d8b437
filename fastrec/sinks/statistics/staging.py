"""Where values wait until they are measured: blocks of rows, which are written again when all their passes have ended.

staging = Staging(measure)
column = staging.column(site, value, spec, axis)
row = column.append(value)           # copied now
staging.end(row, info)               # its pass ended; measured when all rows of the block have
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor

from fastrec.events.capture import CaptureSpec
from fastrec.events.sites import PassInfo
from fastrec.sinks._blocks import MAX_ROWS, ROW_BITS, BlockRows, Layout, RowMaker
from fastrec.sinks._copying import parts_of
from fastrec.sinks.ram.columns import RowCopier
from fastrec.sinks.ram.pool import Block

BLOCK_BYTES = 256 * 1024
"""So many bytes of a column are measured together, at least one value."""

MAX_BLOCK_ROWS = 256


class StatisticsBlock(Block):
    """Rows that are measured together.

    ``rows_left`` counts the rows whose pass has not ended; ``infos`` are the passes of those that have ended and are
    not measured yet.
    """

    __slots__ = ("axis", "infos", "maker", "site")

    def __init__(self, number: int, maker: StagedBlocks) -> None:
        super().__init__(number, maker.count)
        self.maker = maker
        self.site = maker.site
        self.axis = maker.axis
        self.infos: list[PassInfo | None] = [None] * maker.count

    @property
    def values(self) -> Tensor:
        """All rows, those that are not written yet included."""
        return self.parts["activation"].read()


class StagedBlocks:
    """Makes the blocks of one column, in the memory of those that were measured."""

    def __init__(self, staging: Staging, site: str, rows: RowMaker, axis: int) -> None:
        self.site = site
        self.axis = axis
        self.count = max(1, min(MAX_BLOCK_ROWS, BLOCK_BYTES // max(1, rows.nbytes)))
        self._staging = staging
        self._rows = rows
        self._unused: list[BlockRows] = []

    def make(self) -> StatisticsBlock:
        """A new block."""
        block = StatisticsBlock(self._staging.next_number(), self)
        try:
            block.parts["activation"] = self._unused.pop()
        except IndexError:  # between a look and a pop another thread may take the last one
            block.parts["activation"] = self._rows.make(self.count)
        self._staging.blocks[block.number] = block
        return block

    def keep_clone(self, value: Tensor) -> None:
        """No value is kept as a clone: it would not be measured."""

    def reuse(self, block: StatisticsBlock) -> None:
        """The rows of a block may be written again."""
        rows = block.parts["activation"]
        assert isinstance(rows, BlockRows)
        self._unused.append(rows)


class Staging:
    """All values that wait.

    Arguments:
        measure: what is called with a block once all its passes have ended.
    """

    def __init__(self, measure: Callable[[StatisticsBlock], None]) -> None:
        self.blocks: dict[int, StatisticsBlock] = {}
        self.next_number = itertools.count().__next__
        self._measure = measure

    def column(self, site: str, value: Tensor, spec: CaptureSpec, axis: int) -> RowCopier | TransformColumn:
        """Where values of a site go that are like this one."""
        if spec.transform is not None:
            return TransformColumn(self, site, spec, axis)
        return self.copier(site, Layout.of(value), spec, axis)

    def copier(self, site: str, layout: Layout, spec: CaptureSpec, axis: int) -> RowCopier:
        """Where values of a layout are copied."""
        return RowCopier(self.blocks, StagedBlocks(self, site, RowMaker(layout, spec), axis))

    def end(self, row: int, info: PassInfo | None) -> None:
        """The pass of a row ended; None: the row is dropped. The caller holds the lock of the sink."""
        block = self.blocks[row >> ROW_BITS]
        block.infos[row & (MAX_ROWS - 1)] = info
        block.rows_left -= 1
        if not block.rows_left:
            self._measure(block)
            del self.blocks[block.number]
            block.maker.reuse(block)


class TransformColumn:
    """A column of what a transform makes of values; of the values themselves where those are kept too."""

    def __init__(self, staging: Staging, site: str, spec: CaptureSpec, axis: int) -> None:
        self._staging = staging
        self._site = site
        self._spec = spec
        self._axis = axis
        self._by_layout: dict[Layout, RowCopier] = {}

    def append(self, value: Tensor) -> int:
        """Copy what is measured of a value; its row."""
        parts = parts_of(value, self._spec)
        kept = parts["activation"] if self._spec.save_raw else parts["transformed_activation"]
        layout = Layout.of(kept)
        column = self._by_layout.get(layout)
        if column is None:
            # A transform may make anything of a value, so its units are those of the last axis.
            axis = self._axis if self._spec.save_raw else kept.dim() - 1
            column = self._by_layout.setdefault(layout, self._staging.copier(self._site, layout, self._spec, axis))
        return column.append(kept)

    def discard(self, row: int) -> None:
        """Forget a row."""
        self._staging.end(row, None)
