"""The thread that puts on the disk what was staged: full blocks as they come, everything once in a while."""

from __future__ import annotations

import os
import threading
from collections import deque
from time import perf_counter, time
from typing import Any

from fastrec._blocks import MOST_ROWS, ROW_BITS
from fastrec.events.sites import Catalog
from fastrec.sinks._ended import MOST_ENDED, EndedPasses
from fastrec.sinks._hdf5_batch import Batch, Mark
from fastrec.sinks._hdf5_begin import begin
from fastrec.sinks._hdf5_checks import Counters
from fastrec.sinks._hdf5_layout import CHECKS, LOG, MARKS, PASSES, RECORDS, DataInfo
from fastrec.sinks._hdf5_log import CatalogLog, line
from fastrec.sinks._hdf5_options import HDF5Options
from fastrec.sinks._hdf5_paths import Paths
from fastrec.sinks._hdf5_plan import Needs
from fastrec.sinks._hdf5_puts import Puts
from fastrec.sinks._hdf5_segment import Segment
from fastrec.sinks._hdf5_staging import Pool, StagedBlock
from fastrec.sinks._hdf5_together import write_together

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
        self._puts = Puts()
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
            if len(self.ended) >= 8 * MOST_ENDED:
                pool.wait_until(lambda: len(self.ended) < 8 * MOST_ENDED)

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
                self._write_batch(Batch(self.ended, self.marks))
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

    def _write_batch(self, batch: Batch) -> None:
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

    def _settle(self, batch: Batch, touched: list[StagedBlock]) -> None:
        """Note which rows will change no more: those of passes that ended or were dropped."""
        for block, count, top in zip(touched, batch.counts.tolist(), batch.tops.tolist(), strict=True):
            block.settled += count
            block.top = max(block.top, top + 1)
        discarded = self._pool.discarded
        for row in [discarded.popleft() for _ in range(len(discarded))]:
            block = self._pool.blocks[row >> ROW_BITS]
            block.settled += 1
            block.top = max(block.top, (row & (MOST_ROWS - 1)) + 1)
            self._pool.settle(block)

    def _count(self, segment: Segment, counters: Counters) -> None:
        self._counted += 1
        counters.begun, counters.closed = max(counters.begun, self._highest), self._is_closed
        segment.count(counters.row(self._counted), self._counted)
        self._last = counters

    def _ready(self, live: list[StagedBlock], batch: Batch) -> Segment:
        """A segment with room for all of a batch, in which all of its blocks have their places."""
        while True:
            segment = self._segment or self._roll(batch, live)
            # From the first on each time: a new segment takes them all, and other tools see them as they lie.
            if all(self._is_placed(segment, block) for block in live) and segment.has_room(self._sizes(batch, live)):
                return segment
            self._roll(batch, live)

    def _sizes(self, batch: Batch, live: list[StagedBlock]) -> dict[str, int]:
        return {
            LOG: len(self._lines(batch)),
            RECORDS: len(batch.rows),
            PASSES: len(batch.table),
            MARKS: len(batch.marks),
            CHECKS: 3 + sum(len(block.stage.data) for block in live),
        }

    def _lines(self, batch: Batch | None) -> bytes:
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

    def _roll(self, batch: Batch | None = None, live: list[StagedBlock] | None = None) -> Segment:
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
        needs = Needs(rows, self._weights(), tables)
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
