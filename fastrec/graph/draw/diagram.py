"""What is seen of a drawing, as rectangles and lines to lay out.

    placed = placed_view(view_of(drawing))
    placed.view.nodes[3], placed.layout.nodes[3]      # a node and where it is
    placed.layout.boxes[4], placed.layout.routes[5]   # the frame of view.boxes[3], the way of view.edges[5]

The paper is the first box of the layout, so that the frame of box `n` of the view has number `n + 1`.
"""

from __future__ import annotations

import msgspec

from fastrec.graph.draw.layout import Diagram, DiagramBox, DiagramEdge, DiagramNode, DrawingLayout, layout_of
from fastrec.graph.draw.metrics import MARK, node_size, shortened, text_width, title_size
from fastrec.graph.draw.view import DrawingView


class PlacedView(msgspec.Struct, frozen=True):
    """A view and its layout."""

    view: DrawingView
    layout: DrawingLayout


def placed_view(view: DrawingView) -> PlacedView:
    """Lay a view out."""
    return PlacedView(view, layout_of(diagram_of(view)))


def diagram_of(view: DrawingView) -> Diagram:
    """The sizes of all that is seen."""
    frames = {"": 0} | {box.id: number for number, box in enumerate(view.boxes, 1)}
    nodes = [
        DiagramNode(*node_size([shortened(line) for line in node.lines], node.style.shape), frames[node.box])
        for node in view.nodes
    ]
    parents = [-1, *(frames[box.box] for box in view.boxes)]
    places = [len(nodes)] * len(parents)
    for place in range(len(nodes) - 1, -1, -1):
        frame = nodes[place].box
        while frame >= 0:
            places[frame] = place
            frame = parents[frame]
    titles = [(0, 0), *(title_size([shortened(line) for line in box.title]) for box in view.boxes)]
    boxes = [DiagramBox(*numbers) for numbers in zip(parents, titles, places, strict=True)]

    numbers = {node.id: number for number, node in enumerate(view.nodes)}
    tails: dict[int, dict[str, int]] = {}  # each text at the tail of a node's edges is a line of its own
    edges = []
    for edge in view.edges:
        source, target = numbers[edge.source], numbers[edge.target]
        tail, texts = mark_text(edge.tail), tails.setdefault(source, {"": 0})
        value = 2 * texts.setdefault(tail, len(texts)) + (edge.kind == "backward")
        widths = text_width(mark_text(edge.head), MARK), text_width(tail, MARK)
        edges.append(DiagramEdge(source, target, *widths, value))
    return Diagram(nodes, boxes, edges)


def mark_text(texts: tuple[str, ...]) -> str:
    """What is written at one end of an edge."""
    return shortened(", ".join(texts))
