"""The passes of a session in RAM: added as they end, read, handed over by ``pop``, forgotten by ``retain``.

Passes that ended wait as they are in ``_unpacked``, because a loop that pops after each pass would pack every one of
them for nothing. When ``MAX_UNPACKED`` are there, they are packed into the table.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from fastrec.events.sites import Catalog, PassInfo
from fastrec.recording._source import Array, PhaseSteps
from fastrec.sinks._pass_table import MAX_UNPACKED, PassEntry, PassTable
from fastrec.sinks._steps import StepTable
from fastrec.sinks.ram.pool import Block, BlockPool, UncopiedPass
from fastrec.sinks.ram.source import RAMSource, UnpackedPass

PassKey: TypeAlias = tuple[int, int, int]
"""The index, phase and step of a pass."""


class RAMPassLog:
    """Holds the passes of a session, hands them over, and forgets those that need not be kept."""

    def __init__(self, catalog: Catalog, pool: BlockPool) -> None:
        self._catalog = catalog
        self._pool = pool
        self._lock = threading.Lock()
        self._unpacked: deque[UnpackedPass] = deque()
        self._table = PassTable()
        self._steps = StepTable()
        self._retention: tuple[int, bool] | None = None  # how many passes or steps to keep, and whether steps
        self._trim_threshold = 0
        self._n_empty = 0  # passes that ended well and kept nothing
        self._has_only_unpacked = False  # no table, no steps, nothing to trim: `take` needs no lock

    def commit(self, info: PassInfo, metas: Sequence[int], rows: Sequence[int], times: Sequence[float]) -> None:
        """Add a pass that ended, with its records in event order; times are on the clock of ``info.started``."""
        if not rows and info.outcome == "ok":
            # An endless run in which a predicate keeps nothing must not fill the memory with passes.
            with self._lock:
                self._n_empty += 1
            return
        self._unpacked.append((info, metas, rows, times))
        if len(self._unpacked) >= MAX_UNPACKED:
            with self._lock:
                self._pack()

    def mark(self, phase: int, step: int, columns: Mapping[str, Array]) -> None:
        """Add a step that was marked."""
        with self._lock:
            self._has_only_unpacked = False
            self._steps.mark(phase, step, columns)

    def close(self) -> None:
        """End the session; what was recorded stays readable."""

    def source(self) -> RAMSource:
        """The passes that ended so far; later ones do not change it."""
        with self._lock:
            self._trim()
            table, unpacked = self._table.copy() if self._table else _NO_PASSES, list(self._unpacked)
            blocks: dict[int, Block | UncopiedPass] = {**self._pool.blocks, **self._pool.uncopied}
            return RAMSource(self._catalog, table, unpacked, blocks, self._steps.read(), self._n_empty)

    def take(self) -> RAMSource:
        """The passes that ended so far, which are forgotten here."""
        # A training loop calls this after every pass, and a lock takes as long as all the rest.
        if self._n_empty or not self._has_only_unpacked or len(self._unpacked) > 1:
            with self._lock:
                return self._take_all()
        unpacked, rows = self._drain()
        blocks = self._pool.release(rows) if rows else _NO_BLOCKS
        return RAMSource(self._catalog, _NO_PASSES, unpacked, blocks, _NO_STEPS, 0)

    def _take_all(self) -> RAMSource:
        if self._retention is not None:
            self._trim()
        unpacked, rows = self._drain()
        table, steps = _NO_PASSES, _NO_STEPS
        if not self._has_only_unpacked:
            table, self._table = self._table, PassTable()
            rows += table.rows
            steps = self._steps.read()
            self._steps.keep_last(0)
            self._has_only_unpacked = self._retention is None
        blocks = self._pool.release(rows) if rows else _NO_BLOCKS
        self._pool.expect_release()
        n_empty, self._n_empty = self._n_empty, 0
        return RAMSource(self._catalog, table, unpacked, blocks, steps, n_empty)

    def trim(self, count: int, *, by_step: bool) -> None:
        """Forget all but the last passes; or of each phase the last steps, or passes where it has no steps."""
        with self._lock:
            self._pool.expect_release()
            self._has_only_unpacked = False
            self._retention = (count, by_step)
            self._n_empty = 0
            # A trim looks at everything that is kept, so it waits until a quarter as much has come in again.
            if len(self._table) + len(self._unpacked) >= self._trim_threshold:
                self._trim()
                n_passes = len(self._table) + len(self._unpacked)
                self._trim_threshold = n_passes + n_passes // 4 + 1

    def _trim(self) -> None:
        """Forget exactly what need not be kept."""
        if self._retention is None:
            return
        count, by_step = self._retention
        step_counts = self._steps.counts() if by_step else None
        if self._table:
            self._pack()
            passes = self._table.read_passes()
            keys = zip(*(passes[name].tolist() for name in ("pass_index", "phase", "step")), strict=True)
            keep = np.array(_are_last(list(keys), count, step_counts), np.bool_)
            if not keep.all():
                self._table, rows = self._table.split(keep)
                self._pool.release(rows)
        else:
            entries = self._drain_with_rows()
            are_last = _are_last([(info.index, info.phase, info.step) for info, *_ in entries], count, step_counts)
            pairs = list(zip(entries, are_last, strict=True))
            # In front of what other threads have appended meanwhile.
            self._unpacked.extendleft(entry for entry, is_last in reversed(pairs) if is_last)
            self._pool.release(row for entry, is_last in pairs if not is_last for row in entry[2])
        if by_step:
            self._steps.keep_last(count)

    def _pack(self) -> None:
        self._has_only_unpacked = False
        self._table.add(self._drain_with_rows())

    def _drain_with_rows(self) -> list[PassEntry]:
        """Take out the unpacked passes; the pool holds the values of uncopied ones from now on."""
        return [
            (info, metas, self._pool.add_uncopied(rows) if isinstance(rows, UncopiedPass) else rows, times)
            for info, metas, rows, times in self._drain()[0]
        ]

    def _drain(self) -> tuple[list[UnpackedPass], list[int]]:
        """Take out the unpacked passes, and list the rows of those whose values were copied."""
        passes: list[UnpackedPass] = []
        rows: list[int] = []
        for _ in range(len(self._unpacked)):  # other threads may append more meanwhile
            try:
                entry = self._unpacked.popleft()
            except IndexError:  # or take some
                break
            passes.append(entry)
            if not isinstance(entry[2], UncopiedPass):
                rows += entry[2]
        return passes, rows


# Shared by all sources that have none; nobody writes into them.
_NO_PASSES = PassTable()

_NO_BLOCKS: Mapping[int, Block | UncopiedPass] = {}

_NO_STEPS: Sequence[PhaseSteps] = ()


def _are_last(passes: Sequence[PassKey], count: int, step_counts: Mapping[int, int] | None) -> list[bool]:
    """Whether each pass is among the last; with the number of steps of phases, among the last of its phase."""
    if step_counts is None:
        first = _first_of_last((index for index, _, _ in passes), count)
        return [index >= first for index, _, _ in passes]
    indices_by_phase: dict[int, list[int]] = {}
    for index, phase, _ in passes:
        if phase not in step_counts:
            indices_by_phase.setdefault(phase, []).append(index)
    first_indices = {phase: _first_of_last(indices, count) for phase, indices in indices_by_phase.items()}
    return [
        step >= step_counts[phase] - count if phase in step_counts else index >= first_indices[phase]
        for index, phase, step in passes
    ]


def _first_of_last(indices: Iterable[int], count: int) -> int:
    ordered = sorted(indices)
    return ordered[-count] if len(ordered) > count else -1
