"""What files take from the operating system, and what is done where a system lacks it.

    descriptor = open_to_read("run.h5")
    read_at(descriptor, 24, offset)         # bytes at an offset
    read_into(descriptor, view, offset)     # the same, into memory that is there already
    sync(descriptor)                        # what was written is on the disk
    check_writable_here()                   # raises OptionError on Windows
    limit("NOFILE")                         # how many files the process may have open

Linux and macOS have all that reading and writing needs. On Windows recordings can be read, but not written: a file that
others may read while it grows needs writes at an offset, shared locks and a rename over an open file.
"""

from __future__ import annotations

import os
import sys
import threading

from fastrec._errors import OptionError

if sys.platform != "win32":
    try:
        import fcntl
    except ImportError:  # a Python without it, as in a browser
        fcntl = None  # type: ignore[assignment]


def check_writable_here() -> None:
    """Raise OptionError where recordings can't be written to files."""
    if sys.platform == "win32" or fcntl is None:
        system = "Windows" if sys.platform == "win32" else "this Python"
        raise OptionError(
            f"recordings in files need os.pwrite and flock, which {system} lacks; record into RAM, or run under WSL. "
            "Recordings that were written elsewhere can be read"
        )


def limit(name: str) -> int | None:
    """A limit of this process (``ulimit``): "NOFILE" open files, "FSIZE" bytes of a file; None where there is none.

    Asked each time, because a program may change its limits.
    """
    try:
        import resource  # Windows has none
    except ImportError:
        return None
    value, _ = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
    return None if value == resource.RLIM_INFINITY else value


def open_to_read(path: str) -> int:
    """A descriptor of a file, which a child process does not inherit."""
    if sys.platform == "win32":  # where descriptors are not inherited, and a file is text unless it is said to be bytes
        return os.open(path, os.O_RDONLY | os.O_BINARY)
    # Without O_NONBLOCK the opening of a FIFO waits until somebody writes to it.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


if sys.platform == "win32":
    _POSITION_LOCK = threading.Lock()
    """Held from going to a position to reading there: threads share the position of a descriptor."""

    def read_at(descriptor: int, count: int, offset: int) -> bytes:
        """Up to so many bytes at an offset."""
        with _POSITION_LOCK:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, count)

    def read_into(descriptor: int, view: memoryview, offset: int) -> int:
        """Fill memory with what stands at an offset, as far as it goes; how many bytes that were."""
        data = read_at(descriptor, len(view), offset)
        view[: len(data)] = data
        return len(data)

else:
    read_at = os.pread

    def read_into(descriptor: int, view: memoryview, offset: int) -> int:
        """Fill memory with what stands at an offset, as far as it goes; how many bytes that were."""
        return os.preadv(descriptor, [view], offset)


def next_data(descriptor: int, start: int) -> int:
    """Where a file goes on, from a position on, with something else than a hole; an OSError where that is unknown."""
    if sys.platform == "win32":
        return start
    return os.lseek(descriptor, start, os.SEEK_DATA)


def sync(descriptor: int) -> None:
    """Wait until what was written is on the disk."""
    if sys.platform == "linux":
        os.fdatasync(descriptor)  # leaves out the times of the file, which nobody needs after a crash
    else:
        os.fsync(descriptor)


def lock_shared(descriptor: int) -> None:
    """Take a shared lock; BlockingIOError where another program has an exclusive one."""
    if sys.platform == "win32":
        check_writable_here()
    else:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def lock_exclusive(descriptor: int) -> None:
    """Take an exclusive lock; BlockingIOError where another program has any.

    On Windows nothing that is written can be seen, so everything seems to be free.
    """
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
