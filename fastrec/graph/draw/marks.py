"""A drawing with marks: what a recorder keeps, by colour, with the bytes that it keeps in a pass.

    marked(drawing, nodes={3: Mark("kept", 64, "kept: 64 B per pass")}, boxes={}, caption=["64 B per pass"])

A closed module shows what is kept of itself and of all that is in it. Modules of which different things are kept are
no repetitions of each other, so a fold hides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.parts import UNREACHABLE, Box, Mark, Node, total_mark
from fastrec.graph.draw.rules import marked_style


def marked(drawing: Drawing, nodes: Mapping[int, Mark], boxes: Mapping[int, Mark], caption: Iterable[str]) -> Drawing:
    """A drawing whose nodes and boxes carry marks.

    Arguments:
        nodes: by index; one without a mark can't be kept.
        boxes: by index, about what goes into a module and comes out of it, not about what runs inside.
        caption: lines that come after those of the drawing.
    """
    marks = [nodes.get(index, UNREACHABLE) for index in range(len(drawing.nodes))]
    totals: list[list[Mark]] = [[boxes[index]] if index in boxes else [] for index in range(len(drawing.boxes))]
    for mark, node in zip(marks, drawing.nodes, strict=True):
        if node.box >= 0:
            totals[node.box].append(mark)
    for index in range(len(drawing.boxes) - 1, -1, -1):  # what lies inside of a box comes after it
        if drawing.boxes[index].parent >= 0:
            totals[drawing.boxes[index].parent] += totals[index]
    return Drawing(
        drawing.title,
        (*drawing.caption, *caption),
        [_marked_node(node, mark) for node, mark in zip(drawing.nodes, marks, strict=True)],
        [_marked_box(box, boxes.get(i), total_mark(totals[i])) for i, box in enumerate(drawing.boxes)],
        drawing.edges,
        drawing.options,
        drawing.facts,
    )


def _marked_node(node: Node, mark: Mark) -> Node:
    style = marked_style(node.style, mark.verdict)
    lines = (*node.lines, mark.text) if mark.text else node.lines
    return msgspec.structs.replace(node, lines=lines, style=style, alike=(node.alike, mark), mark=mark)


def _marked_box(box: Box, mark: Mark | None, total: Mark) -> Box:
    return msgspec.structs.replace(box, style=marked_style(box.style, total.verdict), mark=mark, total=total)
