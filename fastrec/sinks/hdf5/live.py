"""Recordings that are read while they are written."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from fastrec._errors import DamagedFileError, OptionError, RecordingNotFoundError
from fastrec.recording._recording import Recording
from fastrec.sinks.hdf5.contents import Contents, IncrementalReader, Tables
from fastrec.sinks.hdf5.paths import Paths
from fastrec.sinks.hdf5.reader import ReadFile, find_files
from fastrec.sinks.hdf5.source import HDF5Source

State = Literal["growing", "finished", "killed"]


class LiveRecording(Recording):
    """A recording that another process writes at this moment, up to the last ``refresh``.

    Between two calls of ``refresh`` nothing changes; what was taken from it before (a selection, rows, a record) stays
    as it was. A pickled one is a plain recording of its moment. ``state`` is "growing", "finished" or "killed".
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._growth = FileFollower(path)
        self._tables = Tables.joined([])
        self._refresh()

    def __reduce__(self) -> tuple[Any, ...]:
        return Recording, (self._source,)

    @property
    def state(self) -> State:
        """Whether the recording is being written, was finished, or was left by a process that was killed."""
        return self._growth.state()

    def refresh(self) -> int:
        """Take in what was flushed since the last time; how many passes came.

        Only the tables are read, and only what is new of them: it takes time that grows with what came, but for the
        moment when a file is finished.
        """
        before = self.n_passes
        self._refresh()
        return self.n_passes - before

    def follow(self, *, poll: float = 0.1, timeout: float | None = None) -> Iterator[Recording]:
        """Wait for passes that are not in this recording yet; a recording of the new ones each time that some come.

        Arguments:
            poll: seconds between two looks. The writer flushes once a second, unless it was told otherwise.
            timeout: stop when nothing came for so many seconds; by default only the recording's end does.

        It ends when the recording is finished or its writer was killed, and everything flushed was handed out. This
        recording itself does not change, and nothing is held of what was handed out. Steps are in the recordings in
        which they were marked.
        """
        for name, value in (("poll", poll), ("timeout", timeout)):
            if not (value is None and name == "timeout") and not (isinstance(value, int | float) and value > 0):
                raise OptionError(f"follow({name}={value!r}): give a number of seconds above 0")
        return self._follow(poll, timeout)

    def _follow(self, poll: float, timeout: float | None) -> Iterator[Recording]:
        growth, done = FileFollower(self._path), self._tables.counts
        empty = self._source.n_passes() - done[0]
        waited = time.monotonic()
        state: State = "growing"
        while True:
            found = growth.look()
            new = found.tables.since(*done) if found.anew else found.tables.moved(done[1])
            if any(new.counts) or growth.tail.n_empty > empty:
                contents = Contents(growth.tail, new, start=done)
                contents.n_empty -= empty
                empty = growth.tail.n_empty
                done = (done[0] + len(new.passes), done[1] + len(new.records), done[2] + len(new.marks))
                yield Recording(HDF5Source.of(self._path, contents))
                waited = time.monotonic()
            elif state != "growing" or (timeout is not None and time.monotonic() - waited > timeout):
                return
            else:
                time.sleep(poll)
            state = growth.state()  # before the look: what a finished recording has is all there then

    def _refresh(self) -> None:
        found = self._growth.look()
        self._tables = found.tables if found.anew else Tables.joined([self._tables, found.tables])
        self._source = HDF5Source.of(self._path, Contents(self._growth.tail, self._tables))
        for made in ("_view", "_steps", "sites"):
            self.__dict__.pop(made, None)


ATTEMPTS, PAUSE = 40, 0.05
"""A file makes no sense while it is being finished, which takes less than so many pauses of so many seconds."""


class Poll(NamedTuple):
    """What one look found: rows behind those of the look before, or all of them ``anew`` where files changed."""

    tables: Tables
    anew: bool


class FileFollower:
    """Looks at files again and again, and reads of their tables only what came since."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.tail = IncrementalReader()
        self._paths = Paths(path)
        self._names: list[str] = []
        self._files: list[ReadFile] = []
        self._pid: int | None = None  # a file is not locked in the moment in which the next one begins

    def look(self) -> Poll:
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

    def _look(self) -> Poll:
        names = self._paths.files()
        anew = names != self._names or not self._files
        if anew:
            # Rows may lie elsewhere in a file that was finished, so nothing is kept of what was read before.
            self._files, self.tail = self._found(), IncrementalReader()
            self._names = names
            self._pid = self._files[-1].map.identity.pid if self._files else self._pid
        return Poll(self.tail.more(self._files), anew)

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
