"""Passes and their records in memory, without the values: packed bytes and arrays, and no object for each.

    table = PassTable()
    table.add([(info, metas, rows, times), ...])
    table.read_passes()  # a structured array

A pass is a row of ``PASS_DTYPE``, and a record an element of the arrays ``metas``, ``rows`` and ``times``.
"""

from __future__ import annotations

import struct
import threading
from array import array
from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from fastrec.events.sites import PassInfo, SampleId
from fastrec.recording._source import OUTCOMES, PASS_DTYPE, StructuredArray
from fastrec.recording._view import Mask

PassEntry: TypeAlias = tuple[PassInfo, Sequence[int], Sequence[int], Sequence[float]]
"""A pass with the metas, rows and times of its records, not packed yet."""

MAX_UNPACKED = 64
"""Passes are packed in batches, which is faster; many more objects would set off the garbage collector in the loop."""

MAX_ENDED = 4096
"""So many passes wake the writer of a file; the loop waits for it when eight times as many are there."""

_pack_pass = struct.Struct("<qiqi?bqddqq").pack  # PASS_DTYPE

_OUTCOME_NUMBER = {name: number for number, name in enumerate(OUTCOMES)}


class PassTable:
    """Passes and their records, in the order in which the passes ended."""

    __slots__ = ("metas", "passes", "rows", "samples", "times")

    def __init__(self) -> None:
        self.passes = bytearray()
        self.metas = array("i")
        self.rows = array("q")
        self.times = array("d")
        self.samples: dict[int, SampleId] = {}

    def __len__(self) -> int:
        return len(self.passes) // PASS_DTYPE.itemsize

    def add(self, entries: Sequence[PassEntry]) -> None:
        """Pack passes that ended."""
        first = len(self.rows)
        for info, _, rows, _ in entries:
            self.passes += _pack_pass(
                info.index,
                info.entry,
                info.entry_pass,
                info.phase,
                info.grad,
                _OUTCOME_NUMBER[info.outcome],
                info.step,
                info.started,
                info.duration,
                first,
                len(rows),
            )
            first += len(rows)
            if info.sample_id is not None:
                self.samples[info.index] = info.sample_id
        self.metas.extend(chain.from_iterable(entry[1] for entry in entries))
        self.rows.extend(chain.from_iterable(entry[2] for entry in entries))
        self.times.extend(time - info.started for info, _, _, times in entries for time in times)

    def copy(self) -> PassTable:
        """A table with the same passes and records."""
        table = PassTable()
        table.passes[:] = self.passes
        table.metas, table.rows, table.times = self.metas[:], self.rows[:], self.times[:]
        table.samples = dict(self.samples)
        return table

    def split(self, keep: Mask) -> tuple[PassTable, list[int]]:
        """A table with the passes of a mask, and the rows of the records of all others."""
        passes = self.read_passes()
        keep_records = np.repeat(keep, passes["count"])
        passes = passes[keep]
        passes["first"] = np.cumsum(passes["count"]) - passes["count"]
        table = PassTable()
        table.passes[:] = passes.tobytes()
        for name in ("metas", "rows", "times"):
            column: array[Any] = getattr(self, name)
            getattr(table, name).frombytes(np.frombuffer(column, column.typecode)[keep_records].tobytes())
        indices = set(passes["pass_index"].tolist())
        table.samples = {index: sample for index, sample in self.samples.items() if index in indices}
        return table, np.frombuffer(self.rows, np.int64)[~keep_records].tolist()

    def read_passes(self) -> StructuredArray:
        """The passes as an array of ``PASS_DTYPE``, in the order in which they ended."""
        return np.frombuffer(bytes(self.passes), PASS_DTYPE)


class EndedPasses:
    """Passes in the order in which they ended, packed by the threads that add them and not by the writer."""

    def __init__(self) -> None:
        self._unpacked: deque[PassEntry] = deque()
        self._table = PassTable()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._table) + len(self._unpacked)

    def add(self, entry: PassEntry) -> bool:
        """Add a pass; True where so many are here that they should be written."""
        self._unpacked.append(entry)
        if len(self._unpacked) < MAX_UNPACKED:
            return False
        with self._lock:
            self._pack()
            return len(self._table) >= MAX_ENDED

    def take(self) -> PassTable:
        """Take out all passes."""
        with self._lock:
            self._pack()
            table, self._table = self._table, PassTable()
        return table

    def _pack(self) -> None:
        # The length is read once: what other threads append meanwhile waits for the next time.
        self._table.add([self._unpacked.popleft() for _ in range(len(self._unpacked))])
