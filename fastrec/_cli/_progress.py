"""A bar on the terminal for work that takes long."""

from __future__ import annotations

import shutil
import sys
from time import monotonic
from types import TracebackType

from fastrec.recording._records import told_bytes

QUIET_SECONDS = 0.5
EVERY_SECONDS = 0.1


class Progress:
    """Tells how many of how many bytes are done; called with both. Says nothing where nobody watches."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._last = monotonic()
        self._watched = sys.stderr.isatty()
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        now = monotonic()
        if not self._watched or now - self._began < QUIET_SECONDS or now - self._last < EVERY_SECONDS:
            return
        self._last, self._shown = now, True
        sys.stderr.write("\r\x1b[K" + bar(self._what, done, total, now - self._began, columns()))
        sys.stderr.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def columns() -> int:
    """The width of the terminal."""
    return shutil.get_terminal_size().columns


def bar(what: str, done: int, total: int, seconds: float, width: int) -> str:
    """A line that says how far the work is.

    >>> bar("verify", 512 << 20, 1 << 30, 2.0, 60)
    'verify [########........] 512.0 MiB of 1.0 GiB, 2 s left'
    """
    left = seconds * (total - done) / done if done else 0.0
    told = f"{told_bytes(done)} of {told_bytes(total)}, {left:.0f} s left"
    room = max(0, min(40, width - len(what) - len(told) - 5))
    full = room * min(done, total) // total if total else room
    return f"{what} [{'#' * full}{'.' * (room - full)}] {told}"[: max(1, width - 1)]
