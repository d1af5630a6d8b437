"""The thread that puts on the disk what was staged: full blocks as they come, everything once in a while."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from time import perf_counter, time
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrec.events.sites import Catalog
from fastrec.recording._source import OUTCOMES, PASS_DTYPE
from fastrec.sinks._blocks import MAX_ROWS, ROW_BITS
from fastrec.sinks._pass_table import MAX_ENDED, EndedPasses
from fastrec.sinks.hdf5.append import begin
from fastrec.sinks.hdf5.catalog_log import CatalogLog, line
from fastrec.sinks.hdf5.checksums import Checker, Counters, checksum
from fastrec.sinks.hdf5.layout import (
    CHECKS,
    LOG,
    MARK_ROW,
    MARKS,
    PASS_ROW,
    PASSES,
    RECORD_ROW,
    RECORDS,
    Bytes,
    DataInfo,
)
from fastrec.sinks.hdf5.options import HDF5Options
from fastrec.sinks.hdf5.paths import Paths
from fastrec.sinks.hdf5.segment import Capacity, Segment
from fastrec.sinks.hdf5.staging import Pool, StagedBlock
from fastrec.sinks.hdf5.virtual import write_together

EARLY = 0.8
"""Of the time after which passes are to be safe: then a flush begins, so that it has some to end in."""


class Writer:
    """Owns the files: everything else only stages."""

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
        self._pending = b""
        self._told: set[int] = set()
        self._segment: Segment | None = None
        self._taken: dict[int, int] = {}
        self._asked = self._begun = self._flushed = 0
        self._passes = self._counted = self._highest = 0
        self._is_closed = False
        self._last = Counters()
        self._closing = False
        self._puts = BlockWriter()
        start = begin(paths, options, catalog)
        self._identity, self._lock, self.shapes_before = start.identity, start.lock, start.shapes
        self._thread = threading.Thread(target=self._run, name="fastrec-writer", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Write soon what waits, and do not let it become too much more."""
        pool = self._pool
        with pool.changed:
            self._asked = self._begun + 1
            pool.changed.notify_all()
            if len(self.ended) >= 8 * MAX_ENDED:
                pool.wait_until(lambda: len(self.ended) < 8 * MAX_ENDED)

    def flush(self) -> None:
        """Return once everything of the passes that ended is in the file."""
        pool = self._pool
        with pool.changed:
            # A flush that is under way may have begun before the last pass ended.
            self._asked = want = self._begun + 1
            pool.changed.notify_all()
            pool.changed.wait_for(lambda: self._flushed >= want or pool.error is not None)
        pool.check()

    def close(self) -> None:
        """Write all that is left and finish the file."""
        with self._pool.changed:
            self._closing = True
            self._pool.changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        # Whatever stops this thread has to reach the user, who would wait for ever otherwise.
        try:
            self._work()
        except Exception as error:
            with self._pool.changed:
                self._pool.error = error
                self._pool.changed.notify_all()
            if self._segment is not None:
                self._segment.leave()
        self._puts.close()
        os.close(self._lock)

    def _work(self) -> None:
        pool, seconds = self._pool, EARLY * self._options.flush_seconds
        due = perf_counter() + seconds
        while True:
            with pool.changed:
                pool.changed.wait_for(
                    lambda: self._has_work() or self._asked > self._flushed or self._closing,
                    max(0.0, due - perf_counter()),
                )
                closing = self._closing
                flushes = closing or self._asked > self._flushed or perf_counter() >= due
                self._begun += flushes
                full = [pool.full.popleft() for _ in range(len(pool.full))]
            for block in full:
                self._write_whole(block)
            if flushes:
                due = perf_counter() + seconds
                self._write_batch(FlushBatch(self.ended, self.marks))
                with pool.changed:
                    self._flushed = self._begun
                    pool.changed.notify_all()
            if closing:
                return self._finish()

    def _has_work(self) -> bool:
        """Whether full blocks are to be written; the first file waits until it is seen what comes how often."""
        pool = self._pool
        enough = min(pool.queue_bytes, self._options.segment_bytes) // 8
        return bool(pool.full) and (self._segment is not None or pool.queued >= enough)

    def _write_whole(self, block: StagedBlock) -> None:
        self._place(block)
        assert self._segment is not None
        self._puts.whole(self._segment, block)
        self._pool.written(block)

    def _write_batch(self, batch: FlushBatch) -> None:
        pool, counters, durable = self._pool, self.counters.copy(), self._options.durable
        if not batch and (counters.empty == self._last.empty if self._segment is not None else not counters.begun):
            return
        touched = [pool.blocks[number] for number in batch.numbers.tolist()]
        live = [block for block in touched if block.memory]
        segment = self._ready(live, batch)
        self._settle(batch, touched)
        for block, bottom in zip(touched, batch.bottoms.tolist(), strict=True):
            if block.memory:
                self._puts.settled(segment, block, bottom)
        segment.append(LOG, self._lines(batch))
        first = segment.append(RECORDS, batch.records_at(touched))
        if durable:
            segment.sync()
        segment.append(PASSES, batch.passes_from(first, self._catalog.began))
        segment.append(MARKS, batch.marks_at(touched))
        segment.write_checks()
        self._highest = max(self._highest, batch.begun)
        self._count(segment, counters)
        if durable:
            segment.sync()
        self._pending = b""
        self._told.update(segment.seen)
        self._passes += len(batch.table)
        self.passes_flushed = self._passes + counters.empty
        self.records_flushed += len(batch.rows)
        for block in touched:
            pool.settle(block)

    def _settle(self, batch: FlushBatch, touched: list[StagedBlock]) -> None:
        """Note which rows will change no more: those of passes that ended or were dropped."""
        for block, count, top in zip(touched, batch.counts.tolist(), batch.tops.tolist(), strict=True):
            block.settled += count
            block.top = max(block.top, top + 1)
        discarded = self._pool.discarded
        for row in [discarded.popleft() for _ in range(len(discarded))]:
            block = self._pool.blocks[row >> ROW_BITS]
            block.settled += 1
            block.top = max(block.top, (row & (MAX_ROWS - 1)) + 1)
            self._pool.settle(block)

    def _count(self, segment: Segment, counters: Counters) -> None:
        self._counted += 1
        counters.begun, counters.closed = max(counters.begun, self._highest), self._is_closed
        segment.count(counters.row(self._counted), self._counted)
        self._last = counters

    def _ready(self, live: list[StagedBlock], batch: FlushBatch) -> Segment:
        """A segment with room for all of a batch, in which all of its blocks have their places."""
        while True:
            segment = self._segment or self._roll(batch, live)
            # From the first on each time: a new segment takes them all, and other tools see them as they lie.
            if all(self._is_placed(segment, block) for block in live) and segment.has_room(self._sizes(batch, live)):
                return segment
            self._roll(batch, live)

    def _sizes(self, batch: FlushBatch, live: list[StagedBlock]) -> dict[str, int]:
        return {
            LOG: len(self._lines(batch)),
            RECORDS: len(batch.rows),
            PASSES: len(batch.table),
            MARKS: len(batch.marks),
            CHECKS: 3 + sum(len(block.stage.data) for block in live),
        }

    def _lines(self, batch: FlushBatch | None) -> bytes:
        self._pending += b"".join(self._log.lines())
        return self._pending + self._data_lines() + (b"" if batch is None else batch.lines(self._catalog))

    def _data_lines(self) -> bytes:
        """What the log of this segment does not say yet of the data that has a place in it."""
        new = {} if self._segment is None else self._segment.seen
        return b"".join(line("data", number, info) for number, info in new.items() if number not in self._told)

    def _place(self, block: StagedBlock) -> None:
        while not self._is_placed(self._segment or self._roll(), block):
            self._roll()

    def _is_placed(self, segment: Segment, block: StagedBlock) -> bool:
        if block.place is None:
            block.place = segment.place(block)
        return block.place is not None

    def _roll(self, batch: FlushBatch | None = None, live: list[StagedBlock] | None = None) -> Segment:
        """Finish the segment, and go on in a new one; blocks that are still filled go on there too."""
        number = self._identity.segment
        if self._segment is not None:
            number = self._segment.number + 1
            self._complete(self._segment)
            self._segment.seal(self._paths.sealed(number - 1), self._options)
            sealed, self._segment = self._segment, None
            for block in list(self._pool.blocks.values()):
                if not block.memory and block.place is not None and block.place.segment == sealed.number:
                    block.place = sealed.moved(block.place, block)
        rows: dict[int, int] = {}
        for block in list(self._pool.blocks.values()):
            if not block.memory:
                continue
            if block.place is not None:
                block.place = None
                # With several threads a row before the last settled one may still be on its way.
                block.cut = block.top if block.settled == block.top else 0
                block.checked = block.cut
            for data in block.stage.data:
                rows[data] = rows.get(data, 0) + block.count - block.cut
        self._log.restart()
        self._told = set()
        self._pending = line("session", self._identity.session, self._facts())
        tables = {} if batch is None else self._sizes(batch, live or [])
        tables[LOG] = len(self._lines(batch))
        needs = Capacity(rows, self._weights(), tables)
        identity = self._identity.of_segment(number)
        self._segment = Segment(self._paths, identity, self.infos, needs, self._options)
        return self._segment

    def _complete(self, segment: Segment) -> None:
        """Write what later segments may speak of, and the checksums that had to wait."""
        lines = self._lines(None)
        segment.append(LOG, lines if segment.has_room({LOG: len(lines)}) else self._data_lines())
        self._told.update(segment.seen)
        for block in list(self._pool.blocks.values()):
            if block.memory and block.place is not None and block.top > block.checked:
                self._puts.copy(segment, block)
        segment.write_checks()
        self._count(segment, self.counters.copy())

    def _weights(self) -> dict[int, int]:
        """The bytes that came for each data set since the last time."""
        weights: dict[int, int] = {}
        for stage in list(self._pool.stages):
            for data, maker in zip(stage.data, stage.makers, strict=True):
                came = stage.taken + stage.next_count // 2 - self._taken.get(data, 0)
                weights[data] = maker.nbytes * max(came, 1)
                self._taken[data] = stage.taken
        return weights

    def _facts(self) -> dict[str, Any]:
        return {
            "header": self._catalog.header,
            "began": self._began,
            "flush_seconds": self._options.flush_seconds,
        }

    def _finish(self) -> None:
        """Give the last segment the name that the recording has."""
        segment = self._segment or self._roll()
        self._is_closed = True
        self._complete(segment)
        final = self._paths.path if segment.number == 0 else self._paths.sealed(segment.number)
        segment.seal(final, self._options)
        self._segment = None
        # A file that a killed session left has to be recovered first.
        if segment.number and all(os.path.exists(self._paths.sealed(n)) for n in range(segment.number + 1)):
            write_together(self._paths, segment.number + 1)


class BlockWriter:
    """Writes what is staged in blocks that have a place in a segment."""

    def __init__(self) -> None:
        self._checker = Checker()

    def whole(self, segment: Segment, block: StagedBlock) -> None:
        """Write a full block."""
        _arrived(block)
        self._checked(segment, block, block.count)
        segment.written(block)

    def settled(self, segment: Segment, block: StagedBlock, bottom: int) -> None:
        """Write rows from one on; with a checksum where none before the last one can still change."""
        _arrived(block)
        if block.settled == block.top:
            self._checked(segment, block, block.top)
        else:
            _put(segment, block, bottom, [memory[bottom : block.top] for memory in block.memory])

    def copy(self, segment: Segment, block: StagedBlock) -> None:
        """Write rows of which some may be on their way at this moment, so that file and checksum agree."""
        start, parts = block.checked, [memory[block.checked : block.top].copy() for memory in block.memory]
        _put(segment, block, start, parts)
        _note(segment, block, start, parts, [checksum(part) for part in parts])

    def close(self) -> None:
        """Nothing more is written."""
        self._checker.close()

    def _checked(self, segment: Segment, block: StagedBlock, stop: int) -> None:
        start, block.checked = block.checked, stop
        parts = [memory[start:stop] for memory in block.memory]
        sums = self._checker.of(parts, lambda: _put(segment, block, start, parts))
        _note(segment, block, start, parts, sums)


def _put(segment: Segment, block: StagedBlock, start: int, parts: Sequence[Bytes]) -> None:
    assert block.place is not None
    for number, first, rows in zip(block.stage.data, block.place.firsts, parts, strict=True):
        segment.put(number, first, start, rows)


def _note(segment: Segment, block: StagedBlock, start: int, parts: Sequence[Bytes], sums: Sequence[int]) -> None:
    assert block.place is not None
    for number, first, rows, one in zip(block.stage.data, block.place.firsts, parts, sums, strict=True):
        segment.check(number, first, start, rows, one)


def _arrived(block: StagedBlock) -> None:
    """Wait for copies from a device that are under way."""
    for maker, rows in zip(block.stage.makers, block.values, strict=True):
        if maker.pinned_for is not None:
            rows.read()


Mark = tuple[int, int]
"""A phase, and the row in which the columns of the step were staged."""

Rows = npt.NDArray[np.void]

Integers = npt.NDArray[np.int64]


class FlushBatch:
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
        np.maximum.at(self.tops, inverse, both & (MAX_ROWS - 1))
        self.bottoms = np.full(len(self.numbers), MAX_ROWS)
        np.minimum.at(self.bottoms, inverse, both & (MAX_ROWS - 1))

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
        records["variant"], records["time"] = self.table.metas, self.table.times
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
        return facts[:, 0], facts[:, 1], facts[:, 2] + (rows & (MAX_ROWS - 1)) * facts[:, 3]
