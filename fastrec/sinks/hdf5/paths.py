"""The names of the files that one recording has while it grows and when it is finished."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import socket
import string

from torch import distributed
from torch.utils.data import get_worker_info

from fastrec._errors import OptionError, RecordingExistsError, RecordingFileError

SUFFIXES = (".h5", ".hdf5")

FIELDS = ("rank", "pid", "worker", "host")


def os_message(error: OSError) -> str:
    """What the system says of an error, without what HDF5 says around it."""
    return os.strerror(error.errno) if error.errno else str(error)


class Paths:
    """From the path that the user gave to those of the segments."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        stem, self._suffix = os.path.splitext(self.path)
        if self._suffix not in SUFFIXES or not os.path.basename(stem):
            raise OptionError(f"the path {self.path!r} has to end in .h5 or .hdf5, such as 'run.h5'")
        self._stem = stem

    def sealed(self, number: int) -> str:
        return f"{self._stem}.{number:05d}{self._suffix}"

    def growing(self, number: int) -> str:
        return self.sealed(number) + ".tmp"

    def map(self, number: int) -> str:
        return self.growing(number) + ".map"

    def part(self, number: int) -> str:
        return self.sealed(number) + ".part"

    def segments(self) -> dict[int, list[str]]:
        """The files of segments that exist, by number."""
        found: dict[int, list[str]] = {}
        stem, suffix = re.escape(self._stem), re.escape(self._suffix)
        named = re.compile(rf"{stem}\.(\d{{5}}){suffix}(\.tmp|\.tmp\.map|\.tmp\.map\.part|\.part)?", re.DOTALL)
        for path in sorted(glob.glob(glob.escape(self._stem) + ".*")):
            match = named.fullmatch(path)
            if match:
                found.setdefault(int(match[1]), []).append(path)
        return found

    def files(self) -> list[str]:
        """All files that exist of this recording."""
        there = [path for path in (self.path, self.path + ".part") if os.path.lexists(path)]
        return there + [path for paths in self.segments().values() for path in paths]

    def forget(self, number: int) -> None:
        """Remove what a segment only needed while it grew; the map last, which makes the rest readable."""
        for path in (self.growing(number), self.part(number), self.map(number) + ".part", self.map(number)):
            if os.path.exists(path):
                os.unlink(path)

    def writer(self) -> str | None:
        """A file that some recorder, or another program, has open at this moment to write it."""
        return next((path for path in self.files() if path.endswith(".tmp") and _is_locked(path)), None)

    def claim(self, number: int, *, locking: bool) -> int:
        """Begin a segment that nobody else has begun, and lock it; the descriptor that holds the lock."""
        path = self.growing(number)
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            raise RecordingExistsError(f"another recorder has just begun to write {self.path!r}") from None
        except OSError as error:
            raise RecordingFileError(f"{self.path!r} can't be written: {error.strerror}") from error
        if locking:
            try:
                lock(file, path)
            except BaseException:
                os.close(file)
                os.unlink(path)
                raise
        return file


def lock(file: int, path: str) -> None:
    """Let others know that a file is being written: HDF5 then opens it to be read, and not to be changed."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise RecordingFileError(
                f"{path!r} lies in a file system that has no locks; give HDF5Sink(..., locking=False), and see to it "
                "yourself that no two processes write the same recording"
            ) from error
        raise RecordingExistsError(f"{path!r} is being changed by another program") from error


def _is_locked(path: str) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here
        return False
    finally:
        os.close(file)
    return False


def rank() -> int:
    """The rank of this process, -1 where it has none."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    told = os.environ.get("RANK", "")
    return int(told) if told.isdecimal() else -1


def expanded(pattern: str | os.PathLike[str]) -> str:
    """A path in which {rank}, {pid}, {worker} and {host} are those of this process."""
    path = os.fspath(pattern)
    if "{" not in path and "}" not in path:
        return _checked(path)
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(path)]
    except ValueError as error:
        raise OptionError(f"the path {path!r} makes no sense as a pattern: {error}; write a brace as two") from None
    for name, spec, conversion in fields:
        if name is not None and (name not in FIELDS or spec or conversion):
            raise OptionError(
                f"the path {path!r} has the field {{{name}}}; there are {', '.join(f'{{{f}}}' for f in FIELDS)}, as "
                "they are; write a brace as two"
            )
    worker = get_worker_info()
    return _checked(
        path.format(
            rank=max(0, rank()),
            pid=f"{os.getpid():07d}",  # five digits would look like the number of a segment
            worker=worker.id if worker is not None else 0,
            host=re.sub(r"[^\w-]", "-", socket.gethostname()),
        )
    )


def _checked(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    if suffix in SUFFIXES and re.fullmatch(r".*\.\d{5}", stem, re.DOTALL):
        raise OptionError(
            f"{path!r} is how a part of {stem[:-6] + suffix!r} would be called; give a name whose end is not a dot and "
            "five digits"
        )
    return path
