"""Checksums of what is in a file, and the counters that are written in place."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import msgspec
import numpy as np
import numpy.typing as npt

from fastrec.sinks.hdf5.layout import CHECK_ROW, COUNTERS_ROW, Bytes

WORDS = 512

PAGE = 8 * WORDS

PIECE = 128 * PAGE

LARGE = 4 << 20
"""From so many bytes on, another thread is worth its while."""


def checksum(data: Bytes) -> int:
    """The CRC-32 of the sums of 8-byte words: by place in 4 KiB, then by 4 KiB.

    A CRC of the bytes themselves would take a third of the time that writing them takes; sums take a tenth.
    """
    flat = data.reshape(-1)
    whole = flat.size // PAGE * PAGE
    tail = np.zeros(-(-(flat.size - whole) // PAGE) * PAGE, np.uint8)
    tail[: flat.size - whole] = flat[whole:]
    by_place, by_page = np.zeros(WORDS, "<u8"), []
    # In pieces, so that the second sum finds in the cache what the first one brought there.
    for part in (*(flat[at : min(at + PIECE, whole)] for at in range(0, whole, PIECE)), tail):
        words = part.view("<u8").reshape(-1, WORDS)
        by_place += words.sum(0, dtype="<u8")
        by_page.append(words.sum(1, dtype="<u8"))
    return zlib.crc32(np.concatenate(by_page).tobytes(), zlib.crc32(by_place.tobytes()))


def check_row(data: int, row: int, count: int, checksum: int) -> npt.NDArray[np.void]:
    """The entry for rows that were just written."""
    return np.array([(data, row, count, checksum, 1)], CHECK_ROW)


class Checker:
    """Computes checksums of large rows in a thread of its own, while the writer writes them."""

    def __init__(self) -> None:
        self._given: SimpleQueue[Bytes | None] = SimpleQueue()
        self._found: SimpleQueue[int | Exception] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def of(self, parts: Sequence[Bytes], meanwhile: Callable[[], None]) -> list[int]:
        """The checksums of some memory, during which something else is done with it."""
        if sum(part.size for part in parts) < LARGE:
            meanwhile()
            return [checksum(part) for part in parts]
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fastrec-checksums", daemon=True)
            self._thread.start()
        for part in parts:
            self._given.put(part)
        try:
            meanwhile()
        finally:  # the memory belongs to the other thread until it says so
            found = [self._found.get() for _ in parts]
        return [_raised(one) for one in found]

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._given.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (part := self._given.get()) is not None:
            try:
                self._found.put(checksum(part))
            except Exception as error:  # the writer waits for an answer
                self._found.put(error)
            del part


def _raised(found: int | Exception) -> int:
    if isinstance(found, Exception):
        raise found
    return found


class Counters(msgspec.Struct):
    """What a session counts that no row tells.

    ``empty`` passes ended well and kept nothing; ``begun`` is one more than the highest index of a pass that ended.
    ``closed``: the session ended in order.
    """

    empty: int = 0
    begun: int = 0
    closed: bool = False

    def copy(self) -> Counters:
        """The same at this moment."""
        return Counters(self.empty, self.begun, self.closed)

    def row(self, written: int) -> Bytes:
        """As it is written, for the so-many-th time."""
        row = np.array([(written, self.empty, self.begun, self.closed, 0)], COUNTERS_ROW)
        row["checksum"] = _crc(row)
        return row.view(np.uint8)


def read_counters(data: Bytes) -> Counters:
    """The counters that were written last."""
    best, found = 0, Counters()
    for row in data.view(COUNTERS_ROW).reshape(-1, 1):
        written, empty, begun, closed, expected = row[0].item()
        if written > best and _crc(row) == expected:
            best, found = written, Counters(empty, begun, bool(closed))
    return found


def _crc(row: npt.NDArray[np.void]) -> int:
    return zlib.crc32(row.tobytes()[: -COUNTERS_ROW["checksum"].itemsize])
