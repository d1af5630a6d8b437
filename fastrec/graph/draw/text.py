"""The words of a drawing: shapes, sizes, counts, and the numbers of passes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_HALVES = re.compile("[\ud800-\udfff]")


def whole_characters(text: str) -> str:
    """A text with U+FFFD in place of halves of characters, which no file can hold and which make Chromium crash.

    >>> whole_characters("a\\ud800")
    'a\ufffd'
    """
    return text if text.isascii() else _HALVES.sub("\ufffd", text)


def dimensions(shape: Sequence[int]) -> str:
    """A shape.

    >>> dimensions((1, 384, 13)), dimensions(())
    ('1x384x13', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"


def counted(number: int, thing: str) -> str:
    """How many of something.

    >>> counted(1, "operation"), counted(1200, "operation")
    ('1 operation', '1,200 operations')
    """
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def ranges(numbers: Iterable[int]) -> str:
    """Numbers, those in a row as a range.

    >>> ranges([1, 3, 4, 5])
    '1,3-5'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
