"""Checksums: of rows, of lines of JSON, and of the counters that are overwritten in place.

A process may be killed in the middle of a write, and a disk or a copy may damage any file. So everything that a reader
relies on has a checksum: rows in the table of checks, each line of the log and the index in front of it, and counters
in their own row.
"""

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
"""8-byte words of a page."""

PAGE_BYTES = 8 * WORDS
PIECE_BYTES = 128 * PAGE_BYTES

MIN_THREADED_BYTES = 4 << 20
"""From this many bytes on, another thread pays off."""


def checksum(data: Bytes) -> int:
    """The CRC-32 of the sums of 8-byte words: over all pages for each place in a page, then over each page.

    A CRC of the bytes themselves would take a third of the time that writing them takes; sums take a tenth.
    """
    flat = data.reshape(-1)
    if 0 < flat.size <= PAGE_BYTES:  # rows of tables, most often: the same, in a fifth of the time
        page = flat.tobytes().ljust(PAGE_BYTES, b"\0")
        total = int(np.frombuffer(page, "<u8").sum(dtype="<u8"))
        return zlib.crc32(total.to_bytes(8, "little"), zlib.crc32(page))
    whole = flat.size // PAGE_BYTES * PAGE_BYTES
    tail = np.zeros(-(-(flat.size - whole) // PAGE_BYTES) * PAGE_BYTES, np.uint8)
    tail[: flat.size - whole] = flat[whole:]
    sums_by_place, sums_by_page = np.zeros(WORDS, "<u8"), []
    # In pieces, so that the second sum finds in the cache what the first one brought there.
    for piece in (*(flat[i : min(i + PIECE_BYTES, whole)] for i in range(0, whole, PIECE_BYTES)), tail):
        words = piece.view("<u8").reshape(-1, WORDS)
        sums_by_place += words.sum(0, dtype="<u8")
        sums_by_page.append(words.sum(1, dtype="<u8"))
    return zlib.crc32(np.concatenate(sums_by_page).tobytes(), zlib.crc32(sums_by_place.tobytes()))


def check_row(data: int, address: int, count: int, checksum: int) -> npt.NDArray[np.void]:
    """The entry in the table of checks for rows that were just written, the first of them at an encoded address."""
    return np.array([(data, address, count, checksum, 1)], CHECK_ROW)


def add_checksum(text: bytes) -> bytes:
    """JSON as one line, with its checksum in front."""
    return b"%08x %s\n" % (zlib.crc32(text), text)


def strip_checksum(line: bytes) -> bytes | None:
    """The JSON of a line without its newline; None where the checksum does not fit."""
    fits = len(line) > 9 and line[8:9] == b" " and b"%08x" % zlib.crc32(line[9:]) == line[:8]
    return line[9:] if fits else None


class ChecksumWorker:
    """Computes checksums of large rows in a thread of its own, while the writer writes them."""

    def __init__(self) -> None:
        self._rows: SimpleQueue[Bytes | None] = SimpleQueue()
        self._results: SimpleQueue[int | Exception] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def checksums(self, parts: Sequence[Bytes], meanwhile: Callable[[], None]) -> list[int]:
        """The checksums of some memory, which must stay as it is meanwhile."""
        if sum(part.size for part in parts) < MIN_THREADED_BYTES:
            meanwhile()
            return [checksum(part) for part in parts]
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fastrec-checksums", daemon=True)
            self._thread.start()
        for part in parts:
            self._rows.put(part)
        try:
            meanwhile()
        finally:  # until the other thread has answered, it reads the memory
            results = [self._results.get() for _ in parts]
        return [_raise_or_return(result) for result in results]

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._rows.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (part := self._rows.get()) is not None:
            try:
                self._results.put(checksum(part))
            except Exception as error:  # whatever it is, the writer waits for an answer, and raises it
                self._results.put(error)
            del part  # else this thread would hold the memory until more comes


def _raise_or_return(result: int | Exception) -> int:
    if isinstance(result, Exception):
        raise result
    return result


class Counters(msgspec.Struct):
    """What a session counts that no row says.

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
        """The row on the disk; ``written`` counts how often the counters were written."""
        row = np.array([(written, self.empty, self.begun, self.closed, 0)], COUNTERS_ROW)
        row["checksum"] = _row_checksum(row)
        return row.view(np.uint8)


def read_counters(data: Bytes) -> Counters | None:
    """The counters that were written last; None where none were."""
    last, counters = 0, None
    for row in data.view(COUNTERS_ROW).reshape(-1, 1):
        written, empty, begun, closed, expected = row[0].item()
        if written > last and _row_checksum(row) == expected:
            last, counters = written, Counters(empty, begun, bool(closed))
    return counters


def _row_checksum(row: npt.NDArray[np.void]) -> int:
    return zlib.crc32(row.tobytes()[: -COUNTERS_ROW["checksum"].itemsize])
