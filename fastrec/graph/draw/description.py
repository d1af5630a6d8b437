"""One description of a drawing, from which every picture, text and page is made, so that they can't differ.

    drawing = history.drawing(vis_mode="rolled")   # all nodes, edges and boxes, however deep
    view = view_of(drawing)                        # what is seen of them at the depth that was asked for
    for node in view.nodes:
        print(node.id, node.lines, node.style.fill)

A ``Drawing`` holds everything; a ``View`` of it (view.py) is what stands on paper when some modules are closed. A
drawing knows nothing of models, so other things that have nodes in boxes can be drawn with it, too: a dry run is.
Names may hold anything; what no SVG can hold is replaced here, once, so that it is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import msgspec

from fastrec.graph.draw.folds import find_folds
from fastrec.graph.draw.options import DrawingOptions
from fastrec.graph.draw.parts import Box, Edge, Fold, Node
from fastrec.graph.draw.text import is_xml, xml_characters


class Facts(Protocol):
    """What a page tells of a graph beside its drawing."""

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """Columns with an entry for each node: ``label``, ``type``, ``fn`` and so on, as data.py lists them."""

    def about(self) -> Mapping[str, Any]:
        """The pass and the model: counts, sizes, seed, seconds."""

    def conditions(self) -> Sequence[Mapping[str, Any]]:
        """The tests that Python made."""


class Drawing(msgspec.Struct, dict=True, eq=False):
    """All that can be drawn of a graph: nodes in nested boxes, edges with marks, and a caption.

    ``facts`` tells more of the nodes and of the whole, in columns, to whom asks for it.
    """

    title: str
    caption: tuple[str, ...]
    nodes: Sequence[Node]
    boxes: Sequence[Box]
    edges: Sequence[Edge]
    options: DrawingOptions
    facts: Facts

    def __post_init__(self) -> None:
        if not is_xml("".join(self._texts())):
            self._replace_characters()

    def _texts(self) -> Iterator[str]:
        yield self.title
        yield from self.caption
        for node in self.nodes:
            yield node.id
            yield from node.lines
        for box in self.boxes:
            yield box.id
            yield from (*box.title, *box.lines)
        for edge in self.edges:
            yield from (*edge.head, *edge.tail)

    def _replace_characters(self) -> None:
        """Put U+FFFD where names hold characters that no picture can; ids stay different."""
        ids: set[str] = set()

        def unique(id: str) -> str:
            name = xml_characters(id)
            while name in ids:
                name += "'"
            ids.add(name)
            return name

        def clean(texts: Iterable[str]) -> tuple[str, ...]:
            return tuple(map(xml_characters, texts))

        change = msgspec.structs.replace
        self.title, self.caption = xml_characters(self.title), clean(self.caption)
        self.nodes = [change(node, id=unique(node.id), lines=clean(node.lines)) for node in self.nodes]
        self.boxes = [
            change(box, id=unique(box.id), title=clean(box.title), lines=clean(box.lines)) for box in self.boxes
        ]
        self.edges = [change(edge, head=clean(edge.head), tail=clean(edge.tail)) for edge in self.edges]

    @cached_property
    def top(self) -> tuple[list[int], list[int]]:
        """The boxes and the nodes that lie in no box."""
        boxes = [index for index, box in enumerate(self.boxes) if box.parent < 0]
        return boxes, [index for index, node in enumerate(self.nodes) if node.box < 0]

    @cached_property
    def contents(self) -> list[list[int]]:
        """All nodes in each box, those in boxes inside of it included, in order."""
        contents = [list(box.nodes) for box in self.boxes]
        for index in range(len(self.boxes) - 1, -1, -1):
            parent = self.boxes[index].parent
            if parent >= 0:
                contents[parent] += contents[index]
            contents[index].sort()
        return contents

    @cached_property
    def depths(self) -> list[int]:
        """How deep each box lies, from 1."""
        depths: list[int] = []
        for box in self.boxes:
            depths.append(1 if box.parent < 0 else depths[box.parent] + 1)
        return depths

    @cached_property
    def folds(self) -> list[Fold]:
        """The repetitions among the boxes that lie side by side."""
        return find_folds(self.nodes, self.boxes, self.edges, self.contents)

    @cached_property
    def fold_of(self) -> dict[int, tuple[int, int]]:
        """The fold of each box that is part of one, and which repetition of it the box belongs to, from 0."""
        return {
            box: (number, position // fold.period)
            for number, fold in enumerate(self.folds)
            for position, box in enumerate(fold.boxes)
        }
