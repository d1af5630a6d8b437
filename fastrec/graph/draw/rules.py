"""The visual code: which shape, colours and dashes stand for what.

| seen | means |
|---|---|
| green, red | an input, an output of the model |
| gray | the operation uses parameters: light for trainable ones, darker for frozen ones, both for a mixture |
| yellow | a value that Python tested, as in ``if x.sum() > 3`` |
| all in grays | a buffer, stored in the model but not trained |
| ellipse, rectangle | an operation of its own, the only operation of a module |
| box with an edge | a module that is shown as one node |
| dashed | the value does not come from an input |
| vermilion | the operation that raised, and ended the pass |
| blue arrow | a gradient came back this way |
| sky blue, white, pale gray, vermilion | in a preview: kept, rejected, unreachable, failing |

After the paper, section "Visualization", with the colours of the reference's version 2.15.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec

Shape = Literal["ellipse", "box", "box3d"]
Verdict = Literal["kept", "rejected", "unreachable", "failed"]

WHITE = "#FFFFFF"
BLACK = "#000000"
INPUT = "#98FB98"
OUTPUT = "#FF9999"
TRAINABLE = "#D9D9D9"
FROZEN = "#B0B0B0"
PARAMETERS = "#E6E6E6"  # where it is not known whether they are trainable
TESTED = "#F7D460"
BUFFER, BUFFER_INK = "#F4F4F4", "#888888"
BACKWARD = "#9197F6"

# What a recorder does with a value: sky blue and vermilion of Okabe and Ito's palette for all kinds of sight.
KEPT, FAILED = "#56B4E9", "#D55E00"
UNREACHABLE, UNREACHABLE_INK = "#EFEFEF", "#999999"


class Style(msgspec.Struct, frozen=True):
    """How a node looks. ``fill_end`` is the other end of a gradient, empty where there is none."""

    shape: Shape
    fill: str = WHITE
    fill_end: str = ""
    line: str = BLACK
    font: str = BLACK
    dashed: bool = False


def op_style(
    kind: str,
    trainable: Collection[bool | None] = (),
    *,
    shape: Shape = "ellipse",
    is_tested: bool = False,
    from_input: bool = True,
) -> Style:
    """The style of an operation.

    Arguments:
        kind: that of the node.
        trainable: of each of its parameters, whether it is; None where that is not known.
        shape: ``"box"`` of one that is all that its module does.
        is_tested: Python tested its value.
        from_input: an input is among its ancestors, or it is one.
    """
    if kind == "failed":
        return Style(shape, FAILED, font=WHITE)
    dashed = not from_input
    if kind == "buffer":
        return Style(shape, BUFFER, "", BUFFER_INK, BUFFER_INK, dashed)
    if kind in ("input", "output"):
        return Style(shape, INPUT if kind == "input" else OUTPUT, dashed=dashed)
    if is_tested:
        return Style(shape, TESTED, dashed=dashed)
    return Style(shape, *parameter_fill(trainable), dashed=dashed)


def module_style(trainable: Collection[bool | None], *, from_input: bool) -> Style:
    """The style of a module that is shown as one node."""
    return Style("box3d", *parameter_fill(trainable), dashed=not from_input)


def parameter_fill(trainable: Collection[bool | None]) -> tuple[str, str]:
    """The two ends of the fill for some parameters; None of one of which nobody knows whether it is trainable."""
    if not trainable:
        return WHITE, ""
    if None in trainable:
        return PARAMETERS, ""
    if all(trainable):
        return TRAINABLE, ""
    return (FROZEN, "") if not any(trainable) else (TRAINABLE, FROZEN)


def marked_style(style: Style, verdict: Verdict) -> Style:
    """The style of a node in a preview: its shape and dashes stay, its colour is the verdict's."""
    if verdict == "kept":
        return Style(style.shape, KEPT, dashed=style.dashed)
    if verdict == "failed":
        return Style(style.shape, FAILED, font=WHITE, dashed=style.dashed)
    if verdict == "rejected":
        return Style(style.shape, WHITE, dashed=style.dashed)
    return Style(style.shape, UNREACHABLE, "", UNREACHABLE_INK, UNREACHABLE_INK, style.dashed)
