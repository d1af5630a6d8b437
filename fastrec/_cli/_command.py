"""What a command is, the exit codes, and the one place through which everything is printed."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from fastrec._cli._progress import ProgressBar


class Command(msgspec.Struct, frozen=True):
    """One word behind ``fastrec``.

    Arguments:
        name: the word.
        summary: what it does, in one line, for the list of commands.
        details: what else its ``--help`` says.
        example: command lines that its ``--help`` shows.
        add_arguments: adds its arguments to a parser.
        run: does it, and returns the exit code.
    """

    name: str
    summary: str
    details: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Output], int]


DONE, FAILED, USAGE, NO_FILE, DAMAGED, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 4, 130, 141

EXIT_CODES = f"""\
exit codes:
  {DONE}    done
  {FAILED}    it could not be done: no such site, an option that does not fit, a missing package
  {USAGE}    the command line was not understood
  {NO_FILE}    a file is not there, or can't be read or written
  {DAMAGED}    a file is not a recording, or is damaged
  {INTERRUPTED}  interrupted (Ctrl-C)
  {BROKEN_PIPE}  the reader of the output stopped reading"""


class Output:
    """Prints what a command has to say, as text or as JSON.

    Each method prints in one of the two forms and nothing in the other, so a command calls all that apply.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str) -> None:
        """Print a line of text."""
        if not self.as_json:
            sys.stdout.write(printable(text) + "\n")

    def table(self, rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
        """Print a heading and rows in columns, of which those named in ``right`` are aligned to the right."""
        cells = [[printable(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            columns = zip(row, widths, rows[0], strict=True)
            self.line("  ".join(c.rjust(w) if name in right else c.ljust(w) for c, w, name in columns).rstrip())

    def fields(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print names and values side by side."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.line(f"  {name.ljust(width)}  {value}")

    def document(self, content: Any) -> None:
        """Print the JSON document."""
        if self.as_json:
            sys.stdout.write(json.dumps(jsonable(content), indent=2, allow_nan=False) + "\n")

    def progress(self, label: str) -> ProgressBar:
        """A bar for work that takes long."""
        return ProgressBar(label)


def print_error(text: str) -> None:
    """Print why a command ended, on one line of stderr."""
    sys.stderr.write(f"fastrec: {printable(text)}\n")


def printable(text: str) -> str:
    r"""Text with its control characters written out, so that a name in a file can't talk to the terminal.

    >>> print(printable("a\x1b[2Jb\nc"))
    a\x1b[2Jb\nc
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def jsonable(content: Any) -> Any:
    """Content made of what JSON has, in which NaN and the infinities are null.

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
