"""The thread that puts on the disk what was staged: full blocks as they come, everything once in a while."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from time import perf_counter, time
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrec._catalog import Catalog
from fastrec._contracts import PASS_DTYPE
from fastrec._copying import MOST_ROWS, ROW_BITS
from fastrec.sinks._hdf5_layout import LOG, MARK_ROW, MARKS, PASS_ROW, PASSES, RECORD_ROW, RECORDS, DataInfo
from fastrec.sinks._hdf5_log import CatalogLog, line
from fastrec.sinks._hdf5_paths import Paths
from fastrec.sinks._hdf5_segment import Needs, Segment
from fastrec.sinks._hdf5_staging import Place, Pool, StagedBlock
from fastrec.sinks._ram_table import Entry, Table

MOST_ENDED = 4096
"""Passes that ended and are not written; as many wake the writer, eight times as many wait for it."""

Mark = tuple[int, int]
"""A phase, and the row in which the columns of the step were staged."""


class Batch:
    """Passes and steps that are written together."""

    def __init__(self, ended: deque[Entry], marks: deque[Mark]) -> None:
        # Marks first: a step that is read here must not come before the passes that it closed.
        self.marks = [marks.popleft() for _ in range(len(marks))]
        self._entries = [ended.popleft() for _ in range(len(ended))]
        self.table = Table()
        self.table.add(self._entries)
        self.rows = np.array(self.table.rows, np.int64)
        self.mark_rows = np.array([row for _, row in self.marks], np.int64)
        both = np.concatenate([self.rows[self.rows >= 0], self.mark_rows])
        self.numbers, inverse, self.counts = np.unique(both >> ROW_BITS, return_inverse=True, return_counts=True)
        self.tops = np.zeros(len(self.numbers), np.int64)
        np.maximum.at(self.tops, inverse, both & (MOST_ROWS - 1))
        self.bottoms = np.full(len(self.numbers), MOST_ROWS)
        np.minimum.at(self.bottoms, inverse, both & (MOST_ROWS - 1))

    def lines(self, catalog: Catalog) -> bytes:
        """What the log says of single passes."""
        told = [line("sample", index, sample) for index, sample in self.table.samples.items()]
        halted = (info.index for info, *_ in self._entries if info.outcome == "halted")
        told += [line("halted", index, catalog.halted.get(index, "")) for index in halted]
        return b"".join(told)


class Writer:
    """Owns the files: everything else only stages."""

    def __init__(self, pool: Pool, paths: Paths, catalog: Catalog, options: Any) -> None:
        self.ended: deque[Entry] = deque()
        self.marks: deque[Mark] = deque()
        self.infos: list[DataInfo] = []
        self.passes_flushed = 0
        self.segments_sealed = 0
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
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="fastrec-writer", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Many passes wait: write them soon, and do not let them become too many more."""
        pool = self._pool
        with pool.changed:
            self._asked = self._begun + 1
            pool.changed.notify_all()
            if len(self.ended) >= 8 * MOST_ENDED:
                pool.changed.wait_for(lambda: len(self.ended) < 8 * MOST_ENDED or pool.error is not None)

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
            if self._segment is not None:
                self._segment.leave()
            with self._pool.changed:
                self._pool.error = error
                self._pool.changed.notify_all()

    def _work(self) -> None:
        pool, seconds = self._pool, self._options.flush_seconds
        due = perf_counter() + seconds
        while True:
            with pool.changed:
                pool.changed.wait_for(
                    lambda: pool.full or self._asked > self._flushed or self._closing, max(0.0, due - perf_counter())
                )
                closing = self._closing
                flushes = closing or self._asked > self._flushed or perf_counter() >= due
                self._begun += flushes
                full = [pool.full.popleft() for _ in range(len(pool.full))]
            for block in full:
                self._write_whole(block)
            if flushes:
                self._write_batch(Batch(self.ended, self.marks))
                due = perf_counter() + seconds
                with pool.changed:
                    self._flushed = self._begun
                    pool.changed.notify_all()
            if closing:
                return self._finish()

    def _write_whole(self, block: StagedBlock) -> None:
        _arrived(block)
        self._put(block, self._place(block), block.cut, block.count)
        self._pool.written(block)

    def _write_batch(self, batch: Batch) -> None:
        pool = self._pool
        if self._segment is None and not len(batch.table) and not batch.marks:
            return
        touched = [pool.blocks[number] for number in batch.numbers.tolist()]
        live = [block for block in touched if block.memory]
        segment = self._ready(live, batch)
        for block, bottom, top in zip(touched, batch.bottoms.tolist(), batch.tops.tolist(), strict=True):
            if block.memory:
                _arrived(block)
                assert block.place is not None
                self._put(block, block.place, bottom, top + 1)
        records, passes, marks = self._rows_of(batch, touched, segment)
        segment.append(LOG, self._lines(batch))
        segment.append(RECORDS, records)
        if self._options.durable:
            segment.sync()
        segment.append(PASSES, passes)
        segment.append(MARKS, marks)
        if self._options.durable:
            segment.sync()
        self._pending = b""
        self._told.update(segment.seen)
        self.passes_flushed += len(passes)
        for block, count, top in zip(touched, batch.counts.tolist(), batch.tops.tolist(), strict=True):
            block.settled += count
            block.top = max(block.top, top + 1)
            pool.settle(block)
        self._settle_discarded()

    def _ready(self, live: list[StagedBlock], batch: Batch) -> Segment:
        """A segment with room for all of a batch, in which all of its blocks have their places."""
        while True:
            for block in live:
                self._place(block, batch)
            segment = self._segment or self._roll(batch)
            if all(block.place for block in live) and segment.has_room(self._sizes(batch)):
                return segment
            if all(block.place for block in live):
                self._roll(batch)

    def _sizes(self, batch: Batch) -> dict[str, int]:
        return {
            LOG: len(self._lines(batch)),
            RECORDS: len(batch.rows),
            PASSES: len(batch.table),
            MARKS: len(batch.marks),
        }

    def _lines(self, batch: Batch | None) -> bytes:
        self._pending += b"".join(self._log.lines())
        return self._pending + self._data_lines() + (b"" if batch is None else batch.lines(self._catalog))

    def _data_lines(self) -> bytes:
        """What the log of this segment does not say yet of the data that has a place in it."""
        new = {} if self._segment is None else self._segment.seen
        return b"".join(line("data", number, info) for number, info in new.items() if number not in self._told)

    def _place(self, block: StagedBlock, batch: Batch | None = None) -> Place:
        while block.place is None:
            block.place = self._segment.place(block) if self._segment is not None else None
            if block.place is None:
                self._roll(batch)
        return block.place

    def _roll(self, batch: Batch | None) -> Segment:
        """Finish the segment, and go on in a new one; blocks that are still filled go on there too."""
        number = 0
        if self._segment is not None:
            number = self._segment.number + 1
            # A later segment may speak of values that lie in this one.
            self._segment.append(LOG, self._data_lines())
            self._segment.seal(self._paths.sealed(number - 1), durable=self._options.durable)
            self.segments_sealed += 1
            self._segment = None
        rows: dict[int, int] = {}
        for block in list(self._pool.blocks.values()):
            if not block.memory:
                continue
            if block.place is not None:
                block.place = None
                # With several threads a row before the last settled one may still be on its way.
                block.cut = block.top if block.settled == block.top else 0
            for data in block.stage.data:
                rows[data] = rows.get(data, 0) + block.count - block.cut
        weights: dict[int, int] = {}
        for stage in list(self._pool.stages):
            for data, maker in zip(stage.data, stage.makers, strict=True):
                came = stage.taken + stage.next_count // 2 - self._taken.get(data, 0)
                weights[data] = maker.nbytes * max(came, 1)
                self._taken[data] = stage.taken
        self._log.restart()
        self._told = set()
        session = {
            "header": self._catalog.header,
            "began": self._began,
            "flush_seconds": self._options.flush_seconds,
        }
        self._pending = line("session", 0, session)
        tables = {} if batch is None else self._sizes(batch)
        tables[LOG] = len(self._lines(batch))
        needs = Needs(rows, weights, tables)
        self._segment = Segment(self._paths, number, self.infos, needs, self._options.room())
        return self._segment

    def _put(self, block: StagedBlock, place: Place, start: int, stop: int) -> None:
        assert self._segment is not None
        for number, first, memory in zip(block.stage.data, place.firsts, block.memory, strict=True):
            self._segment.put(number, first, start, memory[start:stop])

    def _rows_of(
        self, batch: Batch, touched: list[StagedBlock], segment: Segment
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """The records, passes and marks of a batch, as they stand in the file."""
        table = batch.table
        records = np.zeros(len(batch.rows), RECORD_ROW)
        records["variant"], records["time"] = table.variants, table.times
        records["data"] = records["transformed_data"] = -1
        kept = np.flatnonzero(batch.rows >= 0)
        for part, prefix in (("activation", ""), ("transformed_activation", "transformed_")):
            found = _located(batch, touched, batch.rows[kept], part)
            for name, values in zip(("segment", "data", "row"), found, strict=True):
                records[prefix + name][kept] = values
        marks = np.zeros(len(batch.marks), MARK_ROW)
        marks["phase"], marks["ok"] = [phase for phase, _ in batch.marks], 1
        marks["segment"], marks["data"], marks["row"] = _located(batch, touched, batch.mark_rows, "step")
        packed = table.read_passes()
        passes = np.zeros(len(packed), PASS_ROW)
        for name in PASS_DTYPE.names or ():
            passes[name] = packed[name]
        passes["started"] -= self._catalog.began
        passes["first"] += segment.used[RECORDS]
        passes["ok"] = 1
        return records, passes, marks

    def _settle_discarded(self) -> None:
        discarded = self._pool.discarded
        for row in [discarded.popleft() for _ in range(len(discarded))]:
            block = self._pool.blocks[row >> ROW_BITS]
            block.settled += 1
            block.top = max(block.top, (row & (MOST_ROWS - 1)) + 1)
            self._pool.settle(block)

    def _finish(self) -> None:
        """Give the last segment the name that the recording has."""
        segment = self._segment or self._roll(None)
        lines = self._lines(None)
        if segment.has_room({LOG: len(lines)}):
            segment.append(LOG, lines)
        final = self._paths.path if segment.number == 0 else self._paths.sealed(segment.number)
        self._segment = None
        segment.seal(final, durable=self._options.durable)


def _located(
    batch: Batch, blocks: Iterable[StagedBlock], rows: npt.NDArray[np.int64], part: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """The segment, data and row in the file of one part of staged rows; data -1 where it was not kept."""
    known: list[tuple[int, int, int, int]] = []
    for block in blocks:
        assert block.place is not None
        if part in block.stage.parts:
            k = block.stage.parts.index(part)
            known.append((block.place.segment, block.stage.data[k], *block.place.firsts[k]))
        else:
            known.append((0, -1, 0, 0))
    at = np.searchsorted(batch.numbers, rows >> ROW_BITS)
    facts = np.array(known, np.int64).reshape(-1, 4)[at]
    return facts[:, 0], facts[:, 1], facts[:, 2] + (rows & (MOST_ROWS - 1)) * facts[:, 3]


def _arrived(block: StagedBlock) -> None:
    """Wait for copies from a device that are under way."""
    for maker, rows in zip(block.stage.makers, block.values, strict=True):
        if maker.arrive_from is not None:
            rows.read()
