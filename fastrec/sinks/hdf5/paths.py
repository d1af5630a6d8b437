"""The files of one recording: what they are called, which exist, and which are being written.

    paths = Paths("run.h5")
    paths.finalized(3), paths.in_progress(3), paths.map(3)
    # 'run.00003.h5', 'run.00003.h5.tmp', 'run.00003.h5.tmp.map'

A segment is written under its name in progress, with its index, the map, beside it. Once it is finalized it gets the
finalized name; a recording that fits one segment gets the path that the user gave. ``.part`` names are those of files
that are made whole before they are renamed into place, so nobody reads them.

The process that writes a segment holds a shared lock on it (``flock``). HDF5 takes a shared lock to read and an
exclusive one to change a file, so any program can read the segment, and none that locks files can change it. The lock
is there before the file has its name, so no look at it can come between the two, and a recorder never waits for a
reader. From the first segment on there is at each moment one that is locked: the next one gets its name before the one
before it is finalized.

Names may be taken by something else: another recording, a link, a FIFO. So files are made under names that nobody
uses, and nothing is written over by the rename that follows (``rename_to_free``).
"""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
import string
import time
import uuid

from fastrec._errors import OptionError, RecordingExistsError, RecordingFileError
from fastrec.events.process import Process
from fastrec.sinks.hdf5.system import lock_exclusive, lock_shared, open_to_read

SUFFIXES = (".h5", ".hdf5")

IN_PROGRESS = ".tmp"
"""How the file of a segment ends that grows, or that a killed process left."""

PATTERN_FIELDS = ("rank", "pid", "worker", "host")

MAX_LOCK_SECONDS = 2.0
"""How long a look at a lock waits for other looks, each of which takes less than a millisecond."""

LOCK_PAUSE_SECONDS = 0.001

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What a file system without locks answers."""


def is_in_progress(path: str) -> bool:
    """Whether the name of a segment's file says that it is not finalized."""
    return path.endswith(IN_PROGRESS)


class Paths:
    """The paths of a recording's files, from the path that the user gave."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        stem, self._suffix = os.path.splitext(self.path)
        if self._suffix not in SUFFIXES or not os.path.basename(stem):
            raise OptionError(
                f"the path {self.path!r} has to end in .h5 or .hdf5, such as 'run.h5', or in a slash, such as 'run/'"
            )
        self._stem = stem

    def finalized(self, number: int) -> str:
        return f"{self._stem}.{number:05d}{self._suffix}"

    def in_progress(self, number: int) -> str:
        return self.finalized(number) + IN_PROGRESS

    def map(self, number: int) -> str:
        return self.in_progress(number) + ".map"

    def part(self, number: int) -> str:
        return self.finalized(number) + ".part"

    def segments(self) -> dict[int, list[str]]:
        """The files of segments that exist, by number."""
        segments: dict[int, list[str]] = {}
        stem, suffix = re.escape(self._stem), re.escape(self._suffix)
        ends = r"\.tmp|\.tmp\.map|\.tmp\.map\.part|\.part|\.tmp\.[0-9a-f]{8}\.part"
        pattern = re.compile(rf"{stem}\.(\d{{5}}){suffix}({ends})?", re.DOTALL)
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
            remove_part(path)

    def remove_unnamed(self, number: int) -> None:
        """Remove files of a segment whose process was killed before it gave them their name."""
        unnamed = re.compile(re.escape(self.in_progress(number)) + r"\.[0-9a-f]{8}\.part")
        for path in self.segments().get(number, ()):
            if unnamed.fullmatch(path):
                remove_part(path)

    def locked_file(self) -> str | None:
        """A file that a recorder writes at this moment, or that another program has open; None where there is none.

        Where the file system has no locks nobody knows, and this is None too.
        """
        return next((path for path in self.files() if is_in_progress(path) and _is_locked(path)), None)

    def claim(self, number: int, *, locking: bool) -> int:
        """Create the file of a segment that nobody has begun, locked already; the descriptor that holds the lock."""
        path = self.in_progress(number)
        part = f"{path}.{uuid.uuid4().hex[:8]}.part"
        descriptor = create_file(part)
        try:
            if locking:
                _lock_new(descriptor, path)
            # Only one of two recorders that begin at the same moment gets the name.
            rename_to_free(part, path)
        except BaseException as error:  # an interrupt too must not leave a file that nobody writes
            os.close(descriptor)
            os.unlink(part)
            if isinstance(error, FileExistsError):
                raise RecordingExistsError(f"another recorder has just begun to write {self.path!r}") from None
            raise
        return descriptor


def create_file(path: str) -> int:
    """Make a file where there is nothing, for reading and writing; its descriptor.

    Unlike a plain open it does not follow a link that somebody put there.
    """
    try:
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise RecordingExistsError(f"{path!r} exists, and was not there a moment ago; remove it") from None
    except OSError as error:
        raise RecordingFileError(f"{path!r} can't be written: {error.strerror}") from error


def remove_part(path: str) -> None:
    """Remove what is under the name of a temporary file, if anything is; a link, not what it leads to."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RecordingFileError(f"{path!r} is in the way and can't be removed: {error.strerror}") from error


def rename_to_free(path: str, target: str) -> None:
    """Rename a file to a name that nothing has; else a FileExistsError, and nothing is changed."""
    try:
        os.link(path, target, follow_symlinks=False)  # a rename would replace what has the name
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(path, target)
    else:
        os.unlink(path)


def open_regular(path: str) -> int:
    """Open a regular file for reading; a RecordingFileError for anything else, such as a FIFO, which might never end.

    Raises FileNotFoundError where there is nothing.
    """
    try:
        descriptor = open_to_read(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordingFileError(f"{path!r} can't be read: {_read_advice(error)}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        advice = f"; {path + os.sep!r} means what is in the folder" if stat.S_ISDIR(mode) else ""
        raise RecordingFileError(f"{path!r} can't be read: it is not a regular file{advice}")
    return descriptor


def _read_advice(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "this process has as many files open as it may; close some, or raise the limit (ulimit -n)"
    return str(error.strerror)


def _lock_new(descriptor: int, path: str) -> None:
    """Take the shared lock of a file that is about to get its name."""
    try:
        lock_shared(descriptor)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise RecordingFileError(
                f"{path!r} lies in a file system that has no locks; give HDF5Sink(..., locking=False), and see to "
                "it yourself that no two processes write the same recording"
            ) from error
        raise RecordingFileError(f"{path!r} can't be locked: {error.strerror}") from error


def lock_unwritten(path: str) -> int | None:
    """Take the exclusive lock of a file in progress that nobody writes; its descriptor, or None without locks.

    Raises RecordingFileError where somebody writes it, or has it open in another program.
    """
    descriptor = open_regular(path)
    try:
        if not _try_exclusive(descriptor):
            raise RecordingFileError(
                f"{path!r} is being written by another process, or open in another program; let that end, or make a "
                "copy elsewhere with recover(..., to=...)"
            )
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and error.errno in NO_LOCKS:
            return None
        raise
    return descriptor


def _is_locked(path: str) -> bool:
    """Whether a recorder or an HDF5 program has a file locked."""
    try:
        descriptor = open_regular(path)
    except OSError:
        return False
    try:
        # There is no way to ask who holds a flock, other than to take it. For this moment others see a lock too.
        return not _try_exclusive(descriptor)
    except OSError:  # the file system has no locks
        return False
    finally:
        os.close(descriptor)


def _try_exclusive(descriptor: int) -> bool:
    """Take the exclusive lock; False where somebody has the file locked for longer than a look takes."""
    give_up = time.monotonic() + MAX_LOCK_SECONDS
    while time.monotonic() < give_up:
        try:
            lock_exclusive(descriptor)
            return True
        except BlockingIOError:
            pass
        try:
            lock_shared(descriptor)
            return False  # shared with whoever writes or reads the file
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_SECONDS)  # another reader looks, at this very moment
    return False


def os_message(error: OSError) -> str:
    """What the system says of an error, without what HDF5 adds."""
    return os.strerror(error.errno) if error.errno else str(error)


def current_folder() -> str:
    """The folder that relative paths start from."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise RecordingFileError(
            "the current folder was removed, so a relative path leads nowhere; change to another one, or give an "
            "absolute path"
        ) from None


def expand_path(pattern: str | os.PathLike[str], process: Process) -> str:
    """A path with {rank}, {pid}, {worker} and {host} replaced by those of this process."""
    path = os.fspath(pattern)
    if "{" in path or "}" in path:
        fields = _fields_of(path)
        if "rank" in fields and process.rank < 0:
            raise OptionError(
                f"the path {path!r} asks for {{rank}}, which nothing tells: there is no process group, and none of "
                "RANK, SLURM_PROCID, OMPI_COMM_WORLD_RANK, PMI_RANK or NODE_RANK and LOCAL_RANK is set. Open the "
                "recorder after init_process_group, set RANK, or give a folder such as 'run/', in which each process "
                "writes a file of its own"
            )
        path = path.format(
            rank=process.rank,
            pid=f"{os.getpid():07d}",  # five digits would look like the number of a segment
            worker=max(0, process.worker),
            host=_as_word(process.host),
        )
    stem, suffix = os.path.splitext(path)
    if suffix in SUFFIXES and re.fullmatch(r".*\.\d{5}", stem, re.DOTALL):
        raise OptionError(
            f"{path!r} is what a segment of {stem[:-6] + suffix!r} would be called; give a name that does not end in a "
            "dot and five digits"
        )
    return path


def is_folder(path: str) -> bool:
    """Whether a path means a folder of recordings, which may have to be made."""
    return path.endswith(os.sep) or (os.path.isdir(path) and os.path.splitext(path)[1] not in SUFFIXES)


def name_in_folder(process: Process) -> str:
    """A file name that no other process gets, nor a later attempt of this one."""
    numbers = [str(number) for number in (process.rank, process.worker) if number >= 0]
    return ".".join([_as_word(process.role), *(["-".join(numbers)] if numbers else []), uuid.uuid4().hex[:8], "h5"])


def _as_word(text: str) -> str:
    return re.sub(r"[^\w-]", "-", text)


def _fields_of(path: str) -> set[str]:
    """The fields of a pattern; an OptionError for others than there are."""
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
    return {name for name, _, _ in fields if name is not None}
