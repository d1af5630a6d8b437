"""A recording's files while somebody writes them."""

from __future__ import annotations

import os
import time
from typing import Literal, NamedTuple

from fastrec._errors import DamagedFileError, RecordingNotFoundError
from fastrec.sinks._hdf5_contents import Tables, Tail
from fastrec.sinks._hdf5_paths import Paths
from fastrec.sinks._hdf5_read import ReadFile, find_files

State = Literal["growing", "finished", "killed"]

ATTEMPTS, PAUSE = 40, 0.05
"""A file makes no sense while it is being finished, which takes less than so many pauses of so many seconds."""


class Look(NamedTuple):
    """What one look found: rows behind those of the look before, or all of them ``anew`` where files changed."""

    tables: Tables
    anew: bool


class Growth:
    """Looks at files again and again, and reads of their tables only what came since."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.tail = Tail()
        self._paths = Paths(path)
        self._names: list[str] = []
        self._files: list[ReadFile] = []
        self._pid: int | None = None  # a file is not locked in the moment in which the next one begins

    def look(self) -> Look:
        """What came since the last look."""
        for _ in range(ATTEMPTS):
            try:
                return self._look()
            except DamagedFileError as error:
                self._files, damaged = [], error
                if self.state() != "growing":
                    break
                time.sleep(PAUSE)
        raise damaged

    def state(self) -> State:
        """Whether the recording is being written, was finished, or was left by a process that was killed."""
        names = self._paths.files()
        # Between two files of a recording that goes on, all that there are may be finished.
        if not any(name.endswith(".tmp") for name in names) and (self._paths.path in names or not self._is_written()):
            return "finished"
        return "growing" if self._is_written() else "killed"

    def _is_written(self) -> bool:
        return self._paths.writer() is not None or (self._pid is not None and _is_alive(self._pid))

    def _look(self) -> Look:
        names = self._paths.files()
        anew = names != self._names or not self._files
        if anew:
            # Rows may lie elsewhere in a file that was finished, so nothing is kept of what was read before.
            self._files, self.tail = self._found(), Tail()
            self._names = names
            self._pid = self._files[-1].map.identity.pid if self._files else self._pid
        return Look(self.tail.more(self._files), anew)

    def _found(self) -> list[ReadFile]:
        try:
            return find_files(self._paths.path)
        except RecordingNotFoundError:
            if not self._paths.segments():
                raise
            return []  # it has only begun


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that ended and that its parent did not ask about does not."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
