"""The parts of a drawing: nodes, boxes, edges, folds, and the marks of a preview.

Nodes, boxes and folds refer to each other by their index in the drawing; -1 is none. A box stands behind the box that
it lies in, and a node behind the nodes that ran before it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Literal

import msgspec

from fastrec.graph.draw.rules import Style, Verdict
from fastrec.graph.draw.text import counted
from fastrec.recording._records import format_bytes

NodeKind = Literal["op", "input", "output", "buffer", "orphan", "failed"]
EdgeKind = Literal["value", "backward"]


class Mark(msgspec.Struct, frozen=True):
    """What a recorder does at a place: the verdict, the bytes that it keeps in a pass, and a line that says so."""

    verdict: Verdict
    nbytes: int
    text: str


UNREACHABLE = Mark("unreachable", 0, "")


class Node(msgspec.Struct, frozen=True):
    """One operation, or in a rolled drawing one layer.

    ``lines`` is the text: the label, shape and size of the value, the shapes of parameters, and the module's or
    buffer's address, where there are any. ``box`` is the innermost module that it ran in. ``ops`` are the operations
    that it stands for, by their index in the capture. ``alike`` is equal for nodes that do the same.
    """

    id: str
    kind: NodeKind
    lines: tuple[str, ...]
    style: Style
    box: int
    ops: tuple[int, ...] = ()
    alike: Hashable = None
    mark: Mark | None = None


class Box(msgspec.Struct):
    """A module: in an unrolled drawing one call of it, in a rolled one all of them.

    ``number`` is which of its ``passes`` it is, 0 for all. ``boxes`` and ``nodes`` are what lies directly in it.
    ``title`` is the text on the open box, ``lines`` and ``style`` are those of the node that stands for the closed one.
    One that ``is_single`` holds one node and nothing else: it is never drawn, and its node is a rectangle with its
    address. ``mark`` is about what goes in and out, ``total`` about all that is inside, too.
    """

    id: str
    address: str
    module_type: str
    number: int
    passes: int
    parent: int
    boxes: list[int]
    nodes: list[int]
    title: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    style: Style = Style("box3d")
    is_single: bool = False
    mark: Mark | None = None
    total: Mark | None = None


class Edge(msgspec.Struct, frozen=True):
    """An arrow between two nodes.

    ``head`` is written where it points to (``arg 0``, ``mask``, ``IF``, ``In 1``), ``tail`` where it comes from
    (``Out 2-3``). A dashed one carries a value that does not come from an input.
    """

    source: int
    target: int
    head: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()
    dashed: bool = False
    kind: EdgeKind = "value"


class Fold(msgspec.Struct, frozen=True):
    """Repetitions of one or two boxes side by side: ``count`` periods of ``period`` boxes in ``parent``."""

    id: str
    parent: int
    period: int
    boxes: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many repetitions there are."""
        return len(self.boxes) // self.period

    def repetition(self, number: int) -> tuple[int, ...]:
        """The boxes of one repetition, from 0."""
        return self.boxes[number * self.period : (number + 1) * self.period]


# From what matters most to whoever looks for what is kept.
IMPORTANCE: tuple[Verdict, ...] = ("failed", "kept", "rejected", "unreachable")


def total_mark(marks: Iterable[Mark]) -> Mark:
    """Several marks as one: the verdict that matters most, all bytes, and how many fail."""
    found = list(marks)
    verdict = min((mark.verdict for mark in found), key=IMPORTANCE.index, default=UNREACHABLE.verdict)
    nbytes = sum(mark.nbytes for mark in found)
    failed = counted(sum(mark.verdict == "failed" for mark in found), "failure") if verdict == "failed" else ""
    return Mark(verdict, nbytes, ", ".join(filter(None, (kept_text(verdict, nbytes), failed))))


def kept_text(verdict: Verdict, nbytes: int) -> str:
    """What is kept, in words; nothing where nothing is."""
    return f"kept: {format_bytes(nbytes)} per pass" if verdict == "kept" or nbytes else ""
