"""Passes that ended and wait to be written."""

from __future__ import annotations

import threading
from collections import deque

from fastrec.sinks._ram_table import Entry, Table

MOST_UNPACKED = 64
"""Passes are packed in batches: as objects they would set off the garbage collector, which stops the loop."""

MOST_ENDED = 4096
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
        if len(self._unpacked) < MOST_UNPACKED:
            return False
        with self._lock:
            self._pack()
            return len(self._table) >= MOST_ENDED

    def take(self) -> Table:
        """All that wait."""
        with self._lock:
            self._pack()
            table, self._table = self._table, Table()
        return table

    def _pack(self) -> None:
        # Other threads may append meanwhile, which the length that was read first leaves for the next time.
        self._table.add([self._unpacked.popleft() for _ in range(len(self._unpacked))])
