"""Recordings that are read while they are written.

    live = fastrec.load("run.h5", live=True)
    for new in live.follow():                # a recording of the passes that came, each time that some did
        print(new.stack("tanh_1").mean())

The reader and the writer do not talk to each other. The reader looks at the files again and again, and takes in the
rows that came since. A segment that is finalized meanwhile has its rows elsewhere, in a file of another name: then
everything is read again, once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from fastrec._errors import DamagedFileError, OptionError, RecordingNotFoundError
from fastrec.recording._recording import Recording
from fastrec.sinks.hdf5.contents import Contents, IncrementalReader, Tables
from fastrec.sinks.hdf5.paths import is_in_progress
from fastrec.sinks.hdf5.reader import ReadFile, find_files, paths_of
from fastrec.sinks.hdf5.source import HDF5Source

State = Literal["growing", "finished", "killed"]

MAX_POLL_ATTEMPTS = 40

POLL_PAUSE_SECONDS = 0.05
"""What is read while a file is finalized may make no sense; that takes less time than all attempts and pauses."""


class LiveRecording(Recording):
    """A recording that another process writes at this moment, up to the last ``refresh``.

    Between two calls of ``refresh`` nothing changes; what was taken from it before (a selection, rows, a record) stays
    as it was. A pickled one is a plain recording of its moment. ``state`` is "growing", "finished" or "killed".
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.abspath(path)
        self._follower = FileFollower(self._path)
        self._tables = Tables.concatenate([])
        self._refresh()

    def __reduce__(self) -> tuple[Any, ...]:
        return Recording, (self._source,)

    @property
    def state(self) -> State:
        """Whether the recording is being written, was finished, or was left by a process that was killed."""
        return self._follower.state()

    def refresh(self) -> int:
        """Take in what was flushed since the last time; how many passes came.

        Only the new rows of the tables are read, so it takes time that grows with what came. After a file was finished,
        one refresh reads all rows again.
        """
        n_passes = self.n_passes
        self._refresh()
        return self.n_passes - n_passes

    def follow(self, *, poll: float = 0.1, timeout: float | None = None) -> Iterator[Recording]:
        """Wait for passes that are not in this recording yet; a recording of the new ones each time that some come.

        Arguments:
            poll: seconds between two looks at the files. The writer flushes once a second by default.
            timeout: seconds without anything new after which to stop; by default only the recording's end stops it.

        It ends when the recording is finished or its writer was killed, and everything flushed was handed out. This
        recording itself does not change, and what was handed out is not held. Steps are in the recordings in which they
        were marked.
        """
        for name, value in (("poll", poll), ("timeout", timeout)):
            if not (value is None and name == "timeout") and not (isinstance(value, int | float) and value > 0):
                raise OptionError(f"follow({name}={value!r}): give a number of seconds above 0")
        return self._follow(poll, timeout)

    def snapshot(self) -> HDF5Source:
        """What it held at the last refresh."""
        assert isinstance(self._source, HDF5Source)
        return self._source

    def _follow(self, poll: float, timeout: float | None) -> Iterator[Recording]:
        new_passes = NewPasses(self._path, self.snapshot())
        last_news = time.monotonic()
        state: State = "growing"
        while True:
            new = new_passes.take()
            if new is not None:
                yield Recording(new)
                last_news = time.monotonic()
            elif state != "growing" or (timeout is not None and time.monotonic() - last_news > timeout):
                return
            else:
                time.sleep(poll)
            # Asked before the files are read once more: what a finished recording has is then all there.
            state = new_passes.state()

    def _refresh(self) -> None:
        news = self._follower.poll()
        self._tables = news.tables if news.is_everything else Tables.concatenate([self._tables, news.tables])
        self._source = HDF5Source(self._path, Contents(self._follower.reader, self._tables))
        self._forget_cached()

    def _forget_cached(self) -> None:
        for cached in ("_view", "_steps", "sites"):
            self.__dict__.pop(cached, None)


class NewPasses:
    """The passes of a recording that came since it was last asked, or since a source was read."""

    def __init__(self, path: str, since: HDF5Source | None) -> None:
        self._path = path
        self._follower = FileFollower(path)
        self._counts = (0, 0, 0) if since is None else since.counts()
        self._n_empty = 0 if since is None else since.n_passes() - self._counts[0]

    def state(self) -> State:
        """Whether more may come."""
        return self._follower.state()

    def take(self) -> HDF5Source | None:
        """What came; None where nothing did."""
        news, counts = self._follower.poll(), self._counts
        new = news.tables.tail(*counts) if news.is_everything else news.tables.without_earlier(counts[1])
        reader = self._follower.reader
        if not any(new.counts) and reader.n_empty <= self._n_empty:
            return None
        contents = Contents(reader, new, start=counts)
        contents.n_empty -= self._n_empty
        self._n_empty = reader.n_empty
        self._counts = counts[0] + len(new.passes), counts[1] + len(new.records), counts[2] + len(new.marks)
        return HDF5Source(self._path, contents)


class Poll(NamedTuple):
    """What one look at the files gave: the rows that were added, or all of them where files changed."""

    tables: Tables
    is_everything: bool


class FileFollower:
    """Looks at the files of a recording again and again, and reads of their tables only what came since."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.reader = IncrementalReader()
        self._paths = paths_of(path)
        self._names: list[str] = []
        self._files: list[ReadFile] = []
        self._writer_pid: int | None = None

    def poll(self) -> Poll:
        """What came since the last look."""
        for _ in range(MAX_POLL_ATTEMPTS):
            try:
                return self._poll()
            except DamagedFileError as error:
                self._files, damage = [], error
                if self.state() != "growing":
                    break
                time.sleep(POLL_PAUSE_SECONDS)
        raise damage

    def state(self) -> State:
        """Whether the recording is being written, was finished, or was left by a process that was killed."""
        names = self._paths.files()
        # In the moment between two segments all files that exist may be finished, though the recording goes on.
        if not any(map(is_in_progress, names)) and (self._paths.path in names or not self._is_written()):
            return "finished"
        return "growing" if self._is_written() else "killed"

    def _is_written(self) -> bool:
        # The process too, because a file is not locked yet in the moment in which it is made.
        if self._paths.locked_file() is not None:
            return True
        return self._writer_pid is not None and is_alive(self._writer_pid)

    def _poll(self) -> Poll:
        names = self._paths.files()
        changed = names != self._names or not self._files
        if changed:
            # Rows may lie elsewhere in a file that was finalized, so nothing is kept of what was read before.
            self._files, self.reader = self._find(), IncrementalReader()
            self._names = names
            self._writer_pid = self._files[-1].index.identity.pid if self._files else self._writer_pid
        return Poll(self.reader.read_new(self._files), changed)

    def _find(self) -> list[ReadFile]:
        try:
            return find_files(self._paths.path)
        except RecordingNotFoundError:
            if not self._paths.segments():
                raise
            return []  # it has only begun


def is_alive(pid: int) -> bool:
    """Whether a process runs on this machine. A zombie, which ended and waits for its parent to notice, does not."""
    if sys.platform == "win32":  # where os.kill would end it, and where nobody writes a recording
        return False
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user, or there is no /proc here
        return True
