"""What a command is."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from time import monotonic
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastrec._errors import DamagedFileError, FastrecError, RecordingNotFoundError
from fastrec.recording._records import format_bytes
from fastrec.recording._source import Part, Source


class Command(msgspec.Struct, frozen=True):
    """One word behind ``fastrec``: what it says of itself, the arguments that it takes, and what it does.

    ``run`` returns the exit code.
    """

    name: str
    summary: str
    details: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Output], int]


DONE, FAILED, USAGE, NO_FILE, DAMAGED, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 4, 130, 141

CODES = f"""\
exit codes:
  {DONE}    done
  {FAILED}    it could not be done: no such site, an option that does not fit, something missing
  {USAGE}    the command line was not understood
  {NO_FILE}    a file is not there, or can't be read or written
  {DAMAGED}    a file is no recording, or is damaged
  {INTERRUPTED}  interrupted (Ctrl-C)
  {BROKEN_PIPE}  whoever read the output stopped reading"""


def message_of(error: Exception, paths: list[str]) -> str:
    """An error on one line, with what to do about it; ``paths`` are the recordings that were asked for."""
    if isinstance(error, OSError) and not isinstance(error, FastrecError):
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)!r}: "
        text = f"{name}{error.strerror or error}"
    else:
        text = str(error)
    if isinstance(error, DamagedFileError):
        text += "; look whether it is the right file and was copied whole"
    if isinstance(error, RecordingNotFoundError):
        missing = next((path for path in paths if repr(path) in text), paths[0])
        text += near_files(os.path.dirname(missing) or ".", os.path.basename(missing))
    return " ".join(text.split())


def code_of(error: Exception) -> int:
    """The exit code of an error."""
    if isinstance(error, DamagedFileError):
        return DAMAGED
    return NO_FILE if isinstance(error, OSError) else FAILED


def near_files(folder: str, name: str) -> str:
    """Which files of recordings a folder has, those with a name like this one first."""
    try:
        there = sorted(entry for entry in os.listdir(folder) if entry.endswith((".h5", ".hdf5")))
    except OSError as error:
        return f"; the folder {folder!r} can't be read: {error.strerror}"
    if not there:
        return f"; {folder!r} has no .h5 file"
    close = sorted(get_close_matches(name, there, n=3)) or there[:3]
    return f"; {folder!r} has {', '.join(repr(entry) for entry in close)}"


class Output:
    """Prints what a command found in the form that was asked for."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def say(self, text: str) -> None:
        """Print a line for people, in which nothing can talk to the terminal."""
        if not self.as_json:
            sys.stdout.write(printable(text) + "\n")

    def table(self, rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
        """Print a heading and rows in columns; those of these names are aligned to the right."""
        cells = [[printable(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            parts = zip(row, widths, rows[0], strict=True)
            self.say("  ".join(cell.rjust(w) if name in right else cell.ljust(w) for cell, w, name in parts).rstrip())

    def facts(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print names and what is known of them."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, told in rows:
            self.say(f"  {name.ljust(width)}  {told}")

    def document(self, content: Any) -> None:
        """Print the JSON, if that was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(jsonable(content), indent=2, allow_nan=False) + "\n")

    def progress(self, what: str) -> Progress:
        """Something to tell of work that takes long."""
        return Progress(what)


def printable(text: str) -> str:
    r"""Text on one line, in which control characters are written out.

    >>> print(printable("a\x1b[2Jb\nc"))
    a\x1b[2Jb\nc
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def jsonable(content: Any) -> Any:
    """The same with what JSON has: a number that is none is null.

    >>> jsonable({"mean": float("nan"), "shape": (2, 3)})
    {'mean': None, 'shape': [2, 3]}
    """
    if isinstance(content, dict):
        return {str(name): jsonable(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [jsonable(value) for value in content]
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return content


def counted(count: int, noun: str, ending: str = "s") -> str:
    """A number with its noun.

    >>> counted(1, "pass", "es"), counted(2000, "pass", "es")
    ('1 pass', '2,000 passes')
    """
    return f"{count:,} {noun}{'' if count == 1 else ending}"


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
    told = f"{format_bytes(done)} of {format_bytes(total)}, {left:.0f} s left"
    room = max(0, min(40, width - len(what) - len(told) - 5))
    full = room * min(done, total) // total if total else room
    return f"{what} [{'#' * full}{'.' * (room - full)}] {told}"[: max(1, width - 1)]


class ProgressSource:
    """Another source, which calls a function with the bytes that were read and those that there are."""

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
        found = self._source.values(metas, rows, part)
        self._done += sum(piece.nbytes for piece in found)
        self._progress(min(self._done, self._total), self._total)
        return found
