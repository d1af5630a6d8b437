"""The passes of a session in RAM: written down as they end, read, handed over, forgotten."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrec.events.sites import Catalog, PassInfo
from fastrec.recording._source import PhaseSteps
from fastrec.sinks._blocks import Block, UncopiedPass
from fastrec.sinks._pass_table import Ended, Entry, Table
from fastrec.sinks._steps import StepTable
from fastrec.sinks.ram.pool import BlockPool
from fastrec.sinks.ram.source import RAMSource

MAX_UNPACKED = 64
"""Passes are packed in batches, which is quicker, and not at all where each pass is handed over."""


class RAMPassLog:
    """Writes down the passes of a session, hands them over, and forgets those that need not be kept."""

    def __init__(self, catalog: Catalog, pool: BlockPool) -> None:
        self._catalog = catalog
        self._pool = pool
        self._lock = threading.Lock()
        self._ended: deque[Ended] = deque()
        self._table = Table()
        self._steps = StepTable()
        self._retained: tuple[int, bool] | None = None
        self._trim_at = 0
        self._empty = 0  # passes that ended well and kept nothing
        self._is_bare = False  # nothing is here but passes that are not packed yet

    def commit(self, info: PassInfo, metas: Sequence[int], rows: Sequence[int], times: Sequence[float]) -> None:
        """A pass ended: its records in event order, times on the clock of ``info.started``."""
        if not rows and info.outcome == "ok":
            # A run without end in which a predicate keeps nothing must not fill the memory with passes.
            with self._lock:
                self._empty += 1
            return
        self._ended.append((info, metas, rows, times))
        if len(self._ended) >= MAX_UNPACKED:
            with self._lock:
                self._pack()

    def mark(self, phase: int, step: int, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """A step was marked."""
        with self._lock:
            self._is_bare = False
            self._steps.mark(phase, step, columns)

    def close(self) -> None:
        """The session ended; what was recorded stays readable."""

    def source(self) -> RAMSource:
        """The passes that ended so far; later ones do not change it."""
        with self._lock:
            self._trim()
            table, ended = self._table.copy() if self._table else _NOTHING, list(self._ended)
            blocks: dict[int, Block | UncopiedPass] = {**self._pool.blocks, **self._pool.held}
            steps = self._steps.read()
            return RAMSource(self._catalog, table, ended, blocks, steps, self._empty)

    def take(self) -> RAMSource:
        """The passes that ended so far, which are forgotten here."""
        # Called after every pass of a training loop, where a lock takes as long as all else.
        if self._empty or not self._is_bare or len(self._ended) > 1:
            with self._lock:
                return self._take_all()
        taken, rows = self._drain()
        blocks = self._pool.release(rows) if rows else _NO_BLOCKS
        return RAMSource(self._catalog, _NOTHING, taken, blocks, _NO_STEPS, 0)

    def _take_all(self) -> RAMSource:
        if self._retained is not None:
            self._trim()
        taken, rows = self._drain()
        table, steps = _NOTHING, _NO_STEPS
        blocks: Mapping[int, Block | UncopiedPass] = _NO_BLOCKS
        if not self._is_bare:
            table, self._table = self._table, Table()
            rows += table.rows
            steps = self._steps.read()
            self._steps.drop()
            self._is_bare = self._retained is None
        if rows:
            blocks = self._pool.release(rows)
        self._pool.hand_over()
        empty, self._empty = self._empty, 0
        return RAMSource(self._catalog, table, taken, blocks, steps, empty)

    def trim(self, most: int, *, steps: bool) -> None:
        """Forget all but the last passes; or of each phase the last steps, or passes where it has no steps."""
        with self._lock:
            self._pool.hand_over()
            self._is_bare = False
            self._retained = (most, steps)
            self._empty = 0
            # Each trim looks at all that is kept, so it waits until a share of that has come in anew.
            if len(self._table) + len(self._ended) >= self._trim_at:
                self._trim()
                kept = len(self._table) + len(self._ended)
                self._trim_at = kept + kept // 4 + 1

    def _drain(self) -> tuple[list[Ended], list[int]]:
        """The passes that ended, and the rows of those whose values are not held as they are."""
        taken: list[Ended] = []
        rows: list[int] = []
        for _ in range(len(self._ended)):  # other threads may append more meanwhile
            try:
                entry = self._ended.popleft()
            except IndexError:  # or take some
                break
            taken.append(entry)
            if not isinstance(entry[2], UncopiedPass):
                rows += entry[2]
        return taken, rows

    def _settled(self) -> list[Entry]:
        """The passes that ended, drained; what is held of them is among the blocks from now on."""
        return [
            (info, metas, self._pool.add(rows) if isinstance(rows, UncopiedPass) else rows, times)
            for info, metas, rows, times in self._drain()[0]
        ]

    def _pack(self) -> None:
        self._is_bare = False
        self._table.add(self._settled())

    def _trim(self) -> None:
        """Forget exactly what need not be kept."""
        if self._retained is None:
            return
        most, steps = self._retained
        marked = self._steps.marked() if steps else None
        if self._table:
            self._pack()
            kept = np.array(_kept(self._table.told(), most, marked), np.bool_)
            if not kept.all():
                self._table, dropped = self._table.split(kept)
                self._pool.release(dropped)
        else:
            ended = self._settled()
            few = _kept([(entry[0].index, entry[0].phase, entry[0].step) for entry in ended], most, marked)
            self._ended.extendleft(entry for entry, stays in zip(ended[::-1], few[::-1], strict=True) if stays)
            self._pool.release(row for entry, stays in zip(ended, few, strict=True) if not stays for row in entry[2])
        if steps:
            self._steps.drop(most)


_NOTHING = Table()

_NO_BLOCKS: Mapping[int, Block | UncopiedPass] = {}

_NO_STEPS: Sequence[PhaseSteps] = ()


def _kept(passes: Sequence[tuple[int, int, int]], most: int, marked: Mapping[int, int] | None) -> list[bool]:
    """Which passes, told by index, phase and step, are among the last; of each phase where marks are given."""
    if marked is None:
        first = _first_of([index for index, _, _ in passes], most)
        return [index >= first for index, _, _ in passes]
    without: dict[int, list[int]] = {}
    for index, phase, _ in passes:
        if phase not in marked:
            without.setdefault(phase, []).append(index)
    firsts = {phase: _first_of(indices, most) for phase, indices in without.items()}
    return [
        step >= marked[phase] - most if phase in marked else index >= firsts[phase] for index, phase, step in passes
    ]


def _first_of(indices: list[int], most: int) -> int:
    return sorted(indices)[-most] if len(indices) > most else -1
