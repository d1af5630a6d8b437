"""The passes of a session in RAM: written down as they end, read, handed over, forgotten."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrec._catalog import Catalog
from fastrec._contracts import PhaseSteps
from fastrec._copying import Block, HeldPass
from fastrec._sites import PassInfo
from fastrec.sinks._ram_blocks import SMALL_BLOCK, BlockPool
from fastrec.sinks._ram_source import RAMSource
from fastrec.sinks._ram_table import Entry, Table
from fastrec.sinks._steps import StepTable

MOST_UNPACKED = 64
"""Passes are packed in batches, which is quicker, and not at all where each pass is handed over."""


class RAMLedger:
    """Writes down the passes of a session, hands them over, and forgets those that need not be kept."""

    def __init__(self, catalog: Catalog, pool: BlockPool) -> None:
        self._catalog = catalog
        self._pool = pool
        self._lock = threading.Lock()
        self._ended: deque[Entry] = deque()
        self._table = Table()
        self._steps = StepTable()
        self._retained: tuple[int, bool] | None = None
        self._trim_at = 0
        self._empty = 0  # passes that ended well and kept nothing

    def commit(
        self, info: PassInfo, variants: Sequence[int], rows: Sequence[int], times: Sequence[float]
    ) -> None:
        """A pass ended: its records in event order, times on the clock of ``info.started``."""
        if not rows and info.outcome == "ok":
            # A run without end in which a predicate keeps nothing must not fill the memory with passes.
            with self._lock:
                self._empty += 1
            return
        self._ended.append((info, variants, rows, times))
        if len(self._ended) >= MOST_UNPACKED:
            with self._lock:
                self._pack()

    def mark(self, phase: int, step: int, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """A step was marked."""
        with self._lock:
            self._steps.mark(phase, step, columns)

    def close(self) -> None:
        """The session ended; what was recorded stays readable."""

    def source(self) -> RAMSource:
        """The passes that ended so far; later ones do not change it."""
        with self._lock:
            self._trim()
            table, ended = self._table.copy() if self._table else _NOTHING, list(self._ended)
            blocks: dict[int, Block | HeldPass] = {**self._pool.blocks, **self._pool.held}
            steps = self._steps.read()
            return RAMSource(self._catalog, table, ended, blocks, steps, self._empty)

    def take(self) -> RAMSource:
        """The passes that ended so far, which are forgotten here."""
        with self._lock:
            self._pool.largest = SMALL_BLOCK
            if self._retained is not None:
                self._trim()
            # Called after every pass of a training loop: what is empty is not touched.
            table, ended, steps = _NOTHING, self._drain(), _NO_STEPS
            rows: Iterable[int] = ended[0][2] if len(ended) == 1 else [row for entry in ended for row in entry[2]]
            if self._table.passes:
                table, self._table = self._table, Table()
                rows = chain(table.rows, rows)
            if self._steps.held:
                steps = self._steps.read()
                self._steps.drop()
            blocks = self._pool.release(rows)
            empty, self._empty = self._empty, 0
            return RAMSource(self._catalog, table, ended, blocks, steps, empty)

    def trim(self, most: int, *, steps: bool) -> None:
        """Forget all but the last passes; or of each phase the last steps, or passes where it has no steps."""
        with self._lock:
            self._pool.largest = SMALL_BLOCK
            self._retained = (most, steps)
            self._empty = 0
            # Each trim looks at all that is kept, so it waits until a share of that has come in anew.
            if len(self._table) + len(self._ended) >= self._trim_at:
                self._trim()
                kept = len(self._table) + len(self._ended)
                self._trim_at = kept + kept // 4 + 1

    def _drain(self) -> list[Entry]:
        # Other threads may append meanwhile, which the length that was read first leaves for the next time.
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def _pack(self) -> None:
        self._table.add(self._drain())

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
            ended = self._drain()
            few = _kept([(entry[0].index, entry[0].phase, entry[0].step) for entry in ended], most, marked)
            self._ended.extendleft(entry for entry, stays in zip(ended[::-1], few[::-1], strict=True) if stays)
            self._pool.release(row for entry, stays in zip(ended, few, strict=True) if not stays for row in entry[2])
        if steps:
            self._steps.drop(most)


_NOTHING = Table()
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
