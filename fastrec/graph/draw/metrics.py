"""How large a text is, and a node that holds it, without a font.

    >>> text_width("conv2d_1_1", TITLE), node_size(("conv2d_1_1", "1x64x112x112 (3.1 MB)"), "box")
    (79, (152, 42))

Pictures and pages are drawn in whatever sans-serif font there is where they are opened, but their boxes have to be laid
out before that, and alike in Python and in the page. So widths come from a table, `fastrec/_web/widths.json`: for each
character the largest width among fonts that browsers commonly take (DejaVu Sans, Inter, Roboto, Liberation Sans, which
is as wide as Arial and Helvetica), in thousandths of the font's size. The page measures its font when it opens, and
makes the letters smaller should they be wider still.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import ceil
from typing import NamedTuple

import msgspec

from fastrec._web.document import asset

MAX_LENGTH = 46
"""Longer texts lose their middle; their ends tell more."""

NODE_PADDING = (12, 7)
PILL_PADDING = 18  # at the sides of an operation outside of modules, whose ends are round
MIN_NODE_WIDTH = 64
TITLE_PADDING = (14, 9)


class Font(NamedTuple):
    """A size in pixels, and the height of a line."""

    size: float
    line: int
    is_bold: bool = False


TITLE = Font(12, 15, is_bold=True)  # the first line of a node
TEXT = Font(10.5, 13)  # its other lines
BOX_TITLE = Font(12, 15, is_bold=True)
MARK = Font(9.5, 12)


class _Widths(msgspec.Struct):
    regular: list[int]
    bold: list[int]
    other: int
    wide: int


@cache
def _widths() -> _Widths:
    table = asset("widths.json")
    return msgspec.json.decode(table, type=_Widths)


def text_width(text: str, font: Font) -> int:
    """The width of a line in pixels, rounded up."""
    table = _widths()
    known = table.bold if font.is_bold else table.regular
    total = 0
    for character in text:
        code = ord(character)
        if 32 <= code < 127:
            total += known[code - 32]
        else:
            total += table.other if code < 0x1100 else table.wide
    return ceil(total * font.size / 1000)


def shortened(text: str) -> str:
    """A text with its middle left out where it is long.

    >>> shortened("features.denseblock3.denselayer12.conv1.weight_orig")
    'features.denseblock3.de…yer12.conv1.weight_orig'
    """
    if len(text) <= MAX_LENGTH:
        return text
    return text[: MAX_LENGTH // 2] + "…" + text[len(text) - MAX_LENGTH // 2 :]


def _even(number: int) -> int:
    return number + number % 2


def node_size(lines: Sequence[str], shape: str, heads: int = 0) -> tuple[int, int]:
    """The width and height of a node with some lines of text; ``heads`` is the room that marks above it need."""
    widths = [text_width(line, TEXT if number else TITLE) for number, line in enumerate(lines)]
    sides = PILL_PADDING if shape == "ellipse" else NODE_PADDING[0]
    width = max(max(widths, default=0) + 2 * sides, heads, MIN_NODE_WIDTH)
    height = 2 * NODE_PADDING[1] + TITLE.line + TEXT.line * max(len(lines) - 1, 0)
    return _even(width), _even(height)


def title_size(lines: Sequence[str]) -> tuple[int, int]:
    """The width and height of the title of an open box."""
    widths = [text_width(line, TEXT if number else BOX_TITLE) for number, line in enumerate(lines)]
    height = TITLE_PADDING[1] + BOX_TITLE.line + TEXT.line * max(len(lines) - 1, 0)
    return TITLE_PADDING[0] + max(widths, default=0), height
