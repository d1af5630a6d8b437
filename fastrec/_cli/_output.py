"""What commands print: lines and tables for people, or one JSON document for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from fastrec._cli._progress import Progress


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
