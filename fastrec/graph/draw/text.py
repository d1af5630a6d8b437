"""The words of a drawing: shapes, sizes, counts, and the numbers of passes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# All that XML 1.0 does not allow: control characters, and halves of characters, which no file can hold.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def is_xml(text: str) -> bool:
    """Whether SVG can hold a text."""
    return _NOT_XML.search(text) is None


def xml_characters(text: str) -> str:
    """A text with U+FFFD in place of what SVG can't hold, and what makes Chromium crash.

    >>> xml_characters("a\\ud800")
    'a\ufffd'
    """
    return _NOT_XML.sub("\ufffd", text)


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
