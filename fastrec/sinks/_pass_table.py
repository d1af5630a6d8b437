"""What RAM holds of passes and records beside the values: packed rows, no object for each."""

from __future__ import annotations

import struct
import threading
from array import array
from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastrec.events.sites import PassInfo
from fastrec.recording._source import OUTCOMES, PASS_DTYPE
from fastrec.sinks._blocks import UncopiedPass

Entry: TypeAlias = tuple[PassInfo, Sequence[int], Sequence[int], Sequence[float]]
"""A pass with the metas, rows and times of its records, not packed yet."""

Ended: TypeAlias = tuple[PassInfo, Sequence[int], Sequence[int] | UncopiedPass, Sequence[float]]
"""The same, where its values may be held as they are, by nobody else yet."""

_pack_pass = struct.Struct("<qiqi?bqddqq").pack

_OUTCOME = {name: number for number, name in enumerate(OUTCOMES)}


class Table:
    """Passes and their records, in the order in which the passes ended."""

    __slots__ = ("passes", "rows", "samples", "times", "metas")

    def __init__(self) -> None:
        self.passes = bytearray()
        self.metas = array("i")
        self.rows = array("q")
        self.times = array("d")
        self.samples: dict[int, str | int] = {}

    def __len__(self) -> int:
        return len(self.passes) // PASS_DTYPE.itemsize

    def add(self, entries: Sequence[Entry]) -> None:
        """Pack passes that ended."""
        first = len(self.rows)
        for info, _, rows, _ in entries:
            self.passes += _pack_pass(
                info.index,
                info.entry,
                info.entry_pass,
                info.phase,
                info.grad,
                _OUTCOME[info.outcome],
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

    def copy(self) -> Table:
        """The same again."""
        new = Table()
        new.passes[:] = self.passes
        new.metas, new.rows, new.times = self.metas[:], self.rows[:], self.times[:]
        new.samples = dict(self.samples)
        return new

    def split(self, kept: npt.NDArray[np.bool_]) -> tuple[Table, list[int]]:
        """The passes of a mask, and the rows of all others."""
        passes = self.read_passes()
        records = np.repeat(kept, passes["count"])
        passes = passes[kept]
        passes["first"] = np.cumsum(passes["count"]) - passes["count"]
        new = Table()
        new.passes[:] = passes.tobytes()
        for name in ("metas", "rows", "times"):
            column: array[Any] = getattr(self, name)
            getattr(new, name).frombytes(np.frombuffer(column, column.typecode)[records].tobytes())
        indices = set(passes["pass_index"].tolist())
        new.samples = {index: sample for index, sample in self.samples.items() if index in indices}
        return new, np.frombuffer(self.rows, np.int64)[~records].tolist()

    def told(self) -> list[tuple[int, int, int]]:
        """The index, phase and step of each pass."""
        passes = self.read_passes()
        return list(zip(passes["pass_index"].tolist(), passes["phase"].tolist(), passes["step"].tolist(), strict=True))

    def read_passes(self) -> npt.NDArray[Any]:
        """The passes as an array of ``PASS_DTYPE``, in the order in which they ended."""
        return np.frombuffer(bytes(self.passes), PASS_DTYPE)


MAX_UNPACKED = 64
"""Passes are packed in batches: as objects they would set off the garbage collector, which stops the loop."""

MAX_ENDED = 4096
"""As many passes wake the writer, eight times as many wait for it."""


class EndedPasses:
    """Passes in the order in which they ended, packed by whoever adds them, so that the writer need not."""

    def __init__(self) -> None:
        self._unpacked: deque[Entry] = deque()
        self._table = Table()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._table) + len(self._unpacked)

    def add(self, entry: Entry) -> bool:
        """One more; whether so many wait that they are to be written."""
        self._unpacked.append(entry)
        if len(self._unpacked) < MAX_UNPACKED:
            return False
        with self._lock:
            self._pack()
            return len(self._table) >= MAX_ENDED

    def take(self) -> Table:
        """All that wait."""
        with self._lock:
            self._pack()
            table, self._table = self._table, Table()
        return table

    def _pack(self) -> None:
        # Other threads may append meanwhile, which the length that was read first leaves for the next time.
        self._table.add([self._unpacked.popleft() for _ in range(len(self._unpacked))])
