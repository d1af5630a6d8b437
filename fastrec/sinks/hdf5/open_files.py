"""Files that are open for reading: not more of them at once than a process may well have.

    file = OPEN_FILES.open("run.00003.h5", stays_open=False)
    with file as descriptor:
        os.pread(descriptor, 100, 0)

A recording may have thousands of segments and be merged of thousands of ranks, and a process may most often have 1024
files open. The first ones stay open, which costs nothing at each read; all further ones are opened for each read, which
costs some microseconds, and are then checked to be the same file.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

from fastrec._errors import DamagedFileError
from fastrec.sinks.hdf5.paths import open_regular
from fastrec.sinks.hdf5.system import limit

MAX_OPEN = 256
"""How many files of all recordings together stay open, where the process may have four times as many."""


def most_open() -> int:
    """How many may stay open in this process: a quarter of what it may have, because it has other files too."""
    most = limit("NOFILE")
    return MAX_OPEN if most is None else max(1, min(MAX_OPEN, most // 4))


class OpenFiles:
    """Counts the files that stay open."""

    def __init__(self, most: int) -> None:
        # Popping and appending are single steps, so this needs no lock, which a destructor could not wait for.
        self._most = most
        self._places = deque(range(most))

    def open(self, path: str, *, stays_open: bool) -> OpenFile:
        """Open a regular file; one that has to stay open does, however many there are."""
        return OpenFile(self, path, stays_open=stays_open)

    def take_place(self) -> int | None:
        """A place for a file that stays open; None where all are taken, or the process may not have so many files."""
        try:
            return self._places.pop() if self._most - len(self._places) < most_open() else None
        except IndexError:
            return None

    def give_back(self, place: int) -> None:
        """Give a place back."""
        self._places.append(place)


class OpenFile:
    """One file, as a context: what it enters with is a descriptor to read from, in any number of threads."""

    def __init__(self, files: OpenFiles, path: str, *, stays_open: bool) -> None:
        self._descriptor = -1
        descriptor = open_regular(path)
        self._path = os.path.abspath(path)
        self._files = files
        self._stat = os.fstat(descriptor)
        self._place = files.take_place()
        self._local = threading.local()
        self._stays_open = stays_open or self._place is not None
        if self._stays_open:
            self._descriptor = descriptor
        else:
            os.close(descriptor)

    def __enter__(self) -> int:
        if self._stays_open:
            return self._descriptor
        try:
            descriptor = open_regular(self._path)
        except FileNotFoundError:
            raise DamagedFileError(f"{self._path!r} was removed since the recording was loaded") from None
        if not os.path.samestat(self._stat, os.fstat(descriptor)):
            os.close(descriptor)
            raise DamagedFileError(f"{self._path!r} was replaced by another file since the recording was loaded")
        self._local.descriptor = descriptor
        return descriptor

    def __exit__(self, *_: object) -> None:
        if not self._stays_open:
            os.close(self._local.descriptor)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # As an argument, because at the end of the interpreter the module `os` may be gone before this file.
        if self._descriptor >= 0:
            close(self._descriptor)
            if self._place is not None:
                self._files.give_back(self._place)


OPEN_FILES = OpenFiles(MAX_OPEN)
"""The only one, as the limit is that of the process."""
