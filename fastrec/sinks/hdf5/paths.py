"""The files of one recording: what they are called, which exist, and which are being written.

    paths = Paths("run.h5")
    paths.finalized(3), paths.in_progress(3), paths.map(3)
    # 'run.00003.h5', 'run.00003.h5.tmp', 'run.00003.h5.tmp.map'

A segment is written under its name in progress, with its index, the map, beside it. Once it is finalized it gets the
finalized name; a recording that fits one segment gets the path that the user gave. ``.part`` names are those of files
that are made whole before they are renamed into place, so nobody reads them.

The process that writes a segment holds a shared lock on it (``flock``). HDF5 takes a shared lock to read and an
exclusive one to change a file, so any program can read the segment, and none that locks files can change it.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import socket
import string
import time

from torch import distributed
from torch.utils.data import get_worker_info

from fastrec._errors import OptionError, RecordingExistsError, RecordingFileError
from fastrec.sinks.hdf5.system import lock_exclusive, lock_shared, open_to_read

SUFFIXES = (".h5", ".hdf5")

PATTERN_FIELDS = ("rank", "pid", "worker", "host")

MAX_LOCK_SECONDS = 2.0
"""How long a lock is waited for. A reader that looks who writes takes it too, for less than a millisecond."""

LOCK_PAUSE_SECONDS = 0.001

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What a file system without locks answers."""


class Paths:
    """The paths of a recording's files, from the path that the user gave."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        stem, self._suffix = os.path.splitext(self.path)
        if self._suffix not in SUFFIXES or not os.path.basename(stem):
            raise OptionError(f"the path {self.path!r} has to end in .h5 or .hdf5, such as 'run.h5'")
        self._stem = stem

    def finalized(self, number: int) -> str:
        return f"{self._stem}.{number:05d}{self._suffix}"

    def in_progress(self, number: int) -> str:
        return self.finalized(number) + ".tmp"

    def map(self, number: int) -> str:
        return self.in_progress(number) + ".map"

    def part(self, number: int) -> str:
        return self.finalized(number) + ".part"

    def segments(self) -> dict[int, list[str]]:
        """The files of segments that exist, by number."""
        segments: dict[int, list[str]] = {}
        stem, suffix = re.escape(self._stem), re.escape(self._suffix)
        pattern = re.compile(rf"{stem}\.(\d{{5}}){suffix}(\.tmp|\.tmp\.map|\.tmp\.map\.part|\.part)?", re.DOTALL)
        for path in sorted(glob.glob(glob.escape(self._stem) + ".*")):
            match = pattern.fullmatch(path)
            if match:
                segments.setdefault(int(match[1]), []).append(path)
        return segments

    def files(self) -> list[str]:
        """All files of this recording that exist."""
        files = [path for path in (self.path, self.path + ".part") if os.path.lexists(path)]
        return files + [path for paths in self.segments().values() for path in paths]

    def remove_in_progress(self, number: int) -> None:
        """Remove what a segment needed only until it was finalized; the map last, without which nothing else counts."""
        for path in (self.in_progress(number), self.part(number), self.map(number) + ".part", self.map(number)):
            if os.path.exists(path):
                os.unlink(path)

    def locked_file(self) -> str | None:
        """A file that a recorder writes at this moment, or that another program has open; None where there is none."""
        return next((path for path in self.files() if path.endswith(".tmp") and _is_locked(path)), None)

    def claim(self, number: int, *, locking: bool) -> int:
        """Create the file of a segment that nobody has begun, and lock it; the descriptor that holds the lock."""
        path = self.in_progress(number)
        # O_EXCL lets one of two recorders have it that begin at the same moment.
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            raise RecordingExistsError(f"another recorder has just begun to write {self.path!r}") from None
        except OSError as error:
            raise RecordingFileError(f"{self.path!r} can't be written: {error.strerror}") from error
        if locking:
            try:
                lock(descriptor, path)
            except BaseException:  # an interrupt too must not leave a file that nobody writes
                os.close(descriptor)
                os.unlink(path)
                raise
        return descriptor


def lock(descriptor: int, path: str) -> None:
    """Take the shared lock of a file that is being written."""
    give_up = time.monotonic() + MAX_LOCK_SECONDS
    while True:
        try:
            return lock_shared(descriptor)
        except OSError as error:
            if error.errno in NO_LOCKS:
                raise RecordingFileError(
                    f"{path!r} lies in a file system that has no locks; give HDF5Sink(..., locking=False), and see to "
                    "it yourself that no two processes write the same recording"
                ) from error
            # A reader that looks whether the file is locked (`_is_locked`) must never stop a recorder.
            if time.monotonic() > give_up:
                raise RecordingExistsError(f"{path!r} is being changed by another program") from error
        time.sleep(LOCK_PAUSE_SECONDS)


def _is_locked(path: str) -> bool:
    """Whether a recorder or an HDF5 program has a file locked."""
    try:
        descriptor = open_to_read(path)
    except OSError:
        return False
    give_up = time.monotonic() + MAX_LOCK_SECONDS
    try:
        while time.monotonic() < give_up:
            # There is no way to ask who holds a flock, other than to take it. For this moment others see a lock too.
            try:
                lock_exclusive(descriptor)
                return False
            except BlockingIOError:
                pass
            try:
                lock_shared(descriptor)
                return True  # shared with whoever writes or reads the file
            except BlockingIOError:
                time.sleep(LOCK_PAUSE_SECONDS)  # another reader looks, at this very moment
        return True
    except OSError:  # the file system has no locks
        return False
    finally:
        os.close(descriptor)


def os_message(error: OSError) -> str:
    """What the system says of an error, without what HDF5 adds."""
    return os.strerror(error.errno) if error.errno else str(error)


def process_rank() -> int:
    """The rank of this process, -1 where it has none."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else -1


def expand_path(pattern: str | os.PathLike[str]) -> str:
    """A path with {rank}, {pid}, {worker} and {host} replaced by those of this process."""
    path = os.fspath(pattern)
    if "{" in path or "}" in path:
        _check_fields(path)
        worker = get_worker_info()
        path = path.format(
            rank=max(0, process_rank()),
            pid=f"{os.getpid():07d}",  # five digits would look like the number of a segment
            worker=worker.id if worker is not None else 0,
            host=re.sub(r"[^\w-]", "-", socket.gethostname()),
        )
    stem, suffix = os.path.splitext(path)
    if suffix in SUFFIXES and re.fullmatch(r".*\.\d{5}", stem, re.DOTALL):
        raise OptionError(
            f"{path!r} is what a segment of {stem[:-6] + suffix!r} would be called; give a name that does not end in a "
            "dot and five digits"
        )
    return path


def _check_fields(path: str) -> None:
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(path)]
    except ValueError as error:
        raise OptionError(
            f"the path {path!r} makes no sense as a pattern: {error}; write a brace that is part of the name twice"
        ) from None
    for name, spec, conversion in fields:
        if name is not None and (name not in PATTERN_FIELDS or spec or conversion):
            allowed = ", ".join(f"{{{field}}}" for field in PATTERN_FIELDS)
            raise OptionError(
                f"the path {path!r} has the field {{{name}}}; the fields are {allowed}, without a format; write a "
                "brace that is part of the name twice"
            )
