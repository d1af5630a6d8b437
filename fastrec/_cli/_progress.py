"""A bar on the terminal for work that takes long."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from time import monotonic
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastrec.recording._records import format_bytes
from fastrec.recording._source import Part, Source

MIN_SECONDS = 0.5
"""Work that is done sooner shows no bar."""

REFRESH_SECONDS = 0.1

CLEAR_LINE = "\r\x1b[K"


class ProgressBar:
    """Called with how many of how many bytes are done. Shows nothing where stderr is not a terminal."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._start = self._last_shown = monotonic()
        self._on_terminal = sys.stderr.isatty()
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        time = monotonic()
        seconds = time - self._start
        if not self._on_terminal or seconds < MIN_SECONDS or time - self._last_shown < REFRESH_SECONDS:
            return
        self._last_shown, self._shown = time, True
        width = shutil.get_terminal_size().columns
        sys.stderr.write(CLEAR_LINE + bar(self._label, done, total, seconds, width))
        sys.stderr.flush()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown:
            sys.stderr.write(CLEAR_LINE)
            sys.stderr.flush()


def bar(label: str, done: int, total: int, seconds: float, width: int) -> str:
    """A line that shows how far the work is and how long the rest will take.

    >>> bar("verify", 512 << 20, 1 << 30, 2.0, 60)
    'verify [########........] 512.0 MiB of 1.0 GiB, 2 s left'
    """
    left = seconds * (total - done) / done if done else 0.0
    numbers = f"{format_bytes(done)} of {format_bytes(total)}, {left:.0f} s left"
    room = max(0, min(40, width - len(label) - len(numbers) - 5))
    full = room * min(done, total) // total if total else room
    return f"{label} [{'#' * full}{'.' * (room - full)}] {numbers}"[: max(1, width - 1)]


class ProgressSource:
    """Another source, but one that calls a function with how many bytes of all values have been read."""

    def __init__(self, source: Source, progress: Callable[[int, int], None]) -> None:
        self._source = source
        self._progress = progress
        records = source.records()
        self._total = int(source.nbytes(records["meta"].astype(np.int64), records["row"]).sum())
        self._done = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def values(self, metas: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], part: Part) -> Sequence[Tensor]:
        """The values of many records in their order."""
        values = self._source.values(metas, rows, part)
        self._done += sum(value.nbytes for value in values)
        # Some values may be read more than once.
        self._progress(min(self._done, self._total), self._total)
        return values
