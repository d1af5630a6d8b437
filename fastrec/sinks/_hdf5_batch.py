"""Passes and steps that are written together, as the rows that a file holds of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fastrec._blocks import MOST_ROWS, ROW_BITS
from fastrec.events.sites import Catalog
from fastrec.recording._source import OUTCOMES, PASS_DTYPE
from fastrec.sinks._ended import EndedPasses
from fastrec.sinks._hdf5_layout import MARK_ROW, PASS_ROW, RECORD_ROW
from fastrec.sinks._hdf5_log import line
from fastrec.sinks._hdf5_staging import StagedBlock

Mark = tuple[int, int]
"""A phase, and the row in which the columns of the step were staged."""

Rows = npt.NDArray[np.void]
Integers = npt.NDArray[np.int64]


class Batch:
    """What ended since the last flush; ``numbers`` are its blocks, ``bottoms`` to ``tops`` its rows in them."""

    def __init__(self, ended: EndedPasses, marks: deque[Mark]) -> None:
        # Marks first: a step that is read here must not come before the passes that it closed.
        self.marks = [marks.popleft() for _ in range(len(marks))]
        self.table = ended.take()
        self._passes = self.table.read_passes()
        self.rows = np.array(self.table.rows, np.int64)
        self.mark_rows = np.array([row for _, row in self.marks], np.int64)
        both = np.concatenate([self.rows[self.rows >= 0], self.mark_rows])
        self.numbers, inverse, self.counts = np.unique(both >> ROW_BITS, return_inverse=True, return_counts=True)
        self.tops = np.zeros(len(self.numbers), np.int64)
        np.maximum.at(self.tops, inverse, both & (MOST_ROWS - 1))
        self.bottoms = np.full(len(self.numbers), MOST_ROWS)
        np.minimum.at(self.bottoms, inverse, both & (MOST_ROWS - 1))

    def __bool__(self) -> bool:
        return bool(len(self.table) or self.marks)

    @property
    def begun(self) -> int:
        """One more than the highest index of its passes."""
        return int(self._passes["pass_index"].max(initial=-1)) + 1

    def lines(self, catalog: Catalog) -> bytes:
        """What the log says of single passes."""
        told = [line("sample", index, sample) for index, sample in self.table.samples.items()]
        halted = self._passes["pass_index"][self._passes["outcome"] == OUTCOMES.index("halted")].tolist()
        told += [line("halted", index, catalog.halted.get(index, "")) for index in halted]
        return b"".join(told)

    def records_at(self, blocks: list[StagedBlock]) -> Rows:
        """The records, once each of the blocks has its place."""
        records = np.zeros(len(self.rows), RECORD_ROW)
        records["variant"], records["time"] = self.table.variants, self.table.times
        records["data"] = records["transformed_data"] = -1
        kept = np.flatnonzero(self.rows >= 0)
        for part, prefix in (("activation", ""), ("transformed_activation", "transformed_")):
            found = self._located(blocks, self.rows[kept], part)
            for name, values in zip(("segment", "data", "row"), found, strict=True):
                records[prefix + name][kept] = values
        return records

    def passes_from(self, first: int, began: float) -> Rows:
        """The passes, if their records are written from row ``first`` on."""
        passes = np.zeros(len(self._passes), PASS_ROW)
        for name in PASS_DTYPE.names or ():
            passes[name] = self._passes[name]
        passes["started"] -= began
        passes["first"] += first
        passes["ok"] = 1
        return passes

    def marks_at(self, blocks: list[StagedBlock]) -> Rows:
        """The marked steps, once each of the blocks has its place."""
        marks = np.zeros(len(self.marks), MARK_ROW)
        marks["phase"], marks["ok"] = [phase for phase, _ in self.marks], 1
        marks["segment"], marks["data"], marks["row"] = self._located(blocks, self.mark_rows, "step")
        return marks

    def _located(
        self, blocks: Iterable[StagedBlock], rows: Integers, part: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The segment, data and row in the file of one part of staged rows; data -1 where it was not kept."""
        known: list[tuple[int, int, int, int]] = []
        for block in blocks:
            assert block.place is not None
            if part in block.stage.parts:
                k = block.stage.parts.index(part)
                known.append((block.place.segment, block.stage.data[k], *block.place.firsts[k]))
            else:
                known.append((0, -1, 0, 0))
        at = np.searchsorted(self.numbers, rows >> ROW_BITS)
        facts = np.array(known, np.int64).reshape(-1, 4)[at]
        return facts[:, 0], facts[:, 1], facts[:, 2] + (rows & (MOST_ROWS - 1)) * facts[:, 3]
