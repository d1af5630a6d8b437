"""What is seen of a drawing when some of its modules and folds are open and the others closed.

    view = view_of(drawing)                              # at the depth of its options
    view = view_of(drawing, Opening(boxes={0, 3}))       # or with just these modules open
    len(view.nodes), view.edges[0].source                # nodes, and edges between their ids

A closed module is one node, and so is a closed fold. An open fold is a frame around one of its repetitions, which
stands for all: edges of the others are those of their likes in it. Edges between the same two visible nodes are one.
What is written at an end of an edge is about the operation there, so it goes where that operation is hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Literal, NamedTuple

import msgspec

from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.parts import Box, EdgeKind, Fold, Mark, Node, total_mark
from fastrec.graph.draw.rules import Style

ViewKind = Literal["node", "module", "fold"]


class Opening(msgspec.Struct, frozen=True):
    """Which boxes are open, of each open fold the repetition that is shown, and the folds that are laid out whole."""

    boxes: Set[int] = frozenset()
    folds: Mapping[int, int] = {}
    unfolded: Set[int] = frozenset()


class ViewNode(msgspec.Struct):
    """A node that is seen: an operation, a closed module or a closed fold; ``index`` is its own among those.

    ``box`` is the id of the frame that it stands in, empty at the top.
    """

    id: str
    kind: ViewKind
    index: int
    lines: tuple[str, ...]
    style: Style
    box: str
    mark: Mark | None = None


class ViewBox(msgspec.Struct):
    """A frame that is seen: an open module or an open fold."""

    id: str
    kind: ViewKind
    index: int
    title: tuple[str, ...]
    box: str
    mark: Mark | None = None


class ViewEdge(msgspec.Struct):
    """An edge between two visible nodes, by id; it stands for ``count`` edges of the drawing."""

    source: str
    target: str
    head: tuple[str, ...]
    tail: tuple[str, ...]
    dashed: bool
    kind: EdgeKind
    count: int = 1


class DrawingView(msgspec.Struct):
    """What is seen."""

    nodes: list[ViewNode]
    boxes: list[ViewBox]
    edges: list[ViewEdge]


def opening_at(drawing: Drawing, depth: int | None, *, folded: bool) -> Opening:
    """Everything open down to a depth; in folds the first repetition, or all of them where not ``folded``."""
    is_open = frozenset(box for box, level in enumerate(drawing.depths) if depth is None or level < depth)
    if not folded:
        return Opening(is_open, {}, frozenset(range(len(drawing.folds))))
    return Opening(is_open, {i: 0 for i, fold in enumerate(drawing.folds) if fold.boxes[0] in is_open})


def view_of(drawing: Drawing, opening: Opening | None = None) -> DrawingView:
    """What is seen of a drawing; without an opening, as its options say."""
    if opening is None:
        options = drawing.options
        opening = opening_at(drawing, options.vis_nesting_depth, folded=options.fold_repeats)
    return _Viewer(drawing, opening).view()


class _ViewPlace(NamedTuple):
    """Where the contents of a box are seen.

    ``hidden_in`` is the closed module or fold that stands for them, empty where they are seen themselves; ``frame`` is
    the one around them. ``repetitions`` are the folds around them, each with the repetition that they belong to.
    """

    hidden_in: str = ""
    frame: str = ""
    repetitions: tuple[tuple[int, int], ...] = ()

    def inside(self, id: str, *, is_open: bool) -> _ViewPlace:
        """The place of what lies in a module or fold that is seen here."""
        return self._replace(frame=id) if is_open else self._replace(hidden_in=id)


_AT_TOP = _ViewPlace()


class _Viewer:
    def __init__(self, drawing: Drawing, opening: Opening) -> None:
        self._drawing = drawing
        self._opening = opening
        self._fold_of = {b: place for b, place in drawing.fold_of.items() if place[0] not in opening.unfolded}
        self._seen: list[tuple[ViewKind, int, str, bool]] = []  # modules and folds, their frames, whether they are open
        self._places: list[_ViewPlace] = []
        for index in range(len(drawing.boxes)):
            self._places.append(self._place(index))

    def _place(self, index: int) -> _ViewPlace:
        """Where a box and what is in it are seen; notes the node or the frame that stands for it."""
        box, opening = self._drawing.boxes[index], self._opening
        place = self._places[box.parent] if box.parent >= 0 else _AT_TOP
        if index in self._fold_of:
            number, repetition = self._fold_of[index]
            fold = self._drawing.folds[number]
            if not place.hidden_in:
                is_open = number in opening.folds
                if index == fold.boxes[0] and not self._is_left_out(place):
                    self._seen.append(("fold", number, place.frame, is_open))
                place = place.inside(fold.id, is_open=is_open)
            place = place._replace(repetitions=(*place.repetitions, (number, repetition)))
        if not place.hidden_in and not box.is_single:
            is_open = index in opening.boxes
            if not self._is_left_out(place):
                self._seen.append(("module", index, place.frame, is_open))
            place = place.inside(box.id, is_open=is_open)
        return place

    def _is_left_out(self, place: _ViewPlace) -> bool:
        """Whether something lies in a repetition of an open fold that is not the one shown."""
        shown = self._opening.folds
        return any(number in shown and shown[number] != repetition for number, repetition in place.repetitions)

    def _place_of(self, node: Node) -> _ViewPlace:
        return self._places[node.box] if node.box >= 0 else _AT_TOP

    def view(self) -> DrawingView:
        """Nodes in the order in which they ran, frames before what is in them."""
        nodes, drawing = [], self._drawing
        for index, node in enumerate(drawing.nodes):
            place = self._place_of(node)
            if not place.hidden_in and not self._is_left_out(place):
                nodes.append((index, ViewNode(node.id, "node", index, node.lines, node.style, place.frame, node.mark)))
        for kind, index, frame, is_open in self._seen:
            if not is_open:
                first = drawing.folds[index].boxes[0] if kind == "fold" else index
                closed = self._closed_fold(index, frame) if kind == "fold" else self._closed_box(index, frame)
                nodes.append((drawing.contents[first][0], closed))
        nodes.sort(key=lambda placed: placed[0])
        boxes = [self._frame(kind, index, frame) for kind, index, frame, is_open in self._seen if is_open]
        return DrawingView([node for _, node in nodes], boxes, self._edges())

    def _closed_box(self, index: int, frame: str) -> ViewNode:
        box = self._drawing.boxes[index]
        return ViewNode(box.id, "module", index, box_lines(box), box.style, frame, box.total)

    def _closed_fold(self, index: int, frame: str) -> ViewNode:
        fold, drawing = self._drawing.folds[index], self._drawing
        lines, style = fold_lines(fold, drawing), fold_style(fold, drawing)
        return ViewNode(fold.id, "fold", index, lines, style, frame, fold_mark(fold, drawing))

    def _frame(self, kind: ViewKind, index: int, frame: str) -> ViewBox:
        if kind == "fold":
            fold = self._drawing.folds[index]
            return ViewBox(fold.id, kind, index, fold_title(fold, self._drawing), frame)
        box = self._drawing.boxes[index]
        return ViewBox(box.id, kind, index, box_title(box), frame, box.mark)

    def _edges(self) -> list[ViewEdge]:
        nodes, likes = self._drawing.nodes, self._likes()
        edges: dict[tuple[str, str, EdgeKind], ViewEdge] = {}
        for edge in self._drawing.edges:
            if _cross(self._place_of(nodes[edge.source]), self._place_of(nodes[edge.target])):
                continue
            source, target = nodes[likes[edge.source]], nodes[likes[edge.target]]
            source_hidden, target_hidden = self._place_of(source).hidden_in, self._place_of(target).hidden_in
            if source_hidden and source_hidden == target_hidden:
                continue
            seen = ViewEdge(source_hidden or source.id, target_hidden or target.id, (), (), edge.dashed, edge.kind, 0)
            seen = edges.setdefault((seen.source, seen.target, seen.kind), seen)
            seen.count += 1
            seen.dashed = seen.dashed and edge.dashed
            if not target_hidden:
                seen.head += tuple(text for text in edge.head if text not in seen.head)
            if not source_hidden:
                seen.tail += tuple(text for text in edge.tail if text not in seen.tail)
        return list(edges.values())

    def _likes(self) -> list[int]:
        """For each node, itself, or its like in the repetition that is shown."""
        drawing = self._drawing
        likes = list(range(len(drawing.nodes)))
        # Folds inside of others come later; a node of theirs may already be what stands for others.
        for number, fold in enumerate(drawing.folds):
            if number not in self._opening.folds or number in self._opening.unfolded:
                continue
            shown = self._nodes_of(fold, self._opening.folds[number])
            for repetition in range(fold.count):
                if repetition != self._opening.folds[number]:
                    for node, like in zip(self._nodes_of(fold, repetition), shown, strict=True):
                        likes[node] = like
        return [_followed(likes, node) for node in range(len(likes))]

    def _nodes_of(self, fold: Fold, repetition: int) -> list[int]:
        return [node for box in fold.repetition(repetition) for node in self._drawing.contents[box]]


def _followed(likes: Sequence[int], node: int) -> int:
    while likes[node] != node:
        node = likes[node]
    return node


def _cross(source: _ViewPlace, target: _ViewPlace) -> bool:
    """Whether two places lie in different repetitions of one fold."""
    repetitions = dict(target.repetitions)
    return any(repetitions.get(number, repetition) != repetition for number, repetition in source.repetitions)


def box_title(box: Box) -> tuple[str, ...]:
    """The text on the frame of an open module."""
    return box.title if box.mark is None or not box.mark.text else (*box.title, box.mark.text)


def box_lines(box: Box) -> tuple[str, ...]:
    """The text on a closed module."""
    return box.lines if box.total is None or not box.total.text else (*box.lines, box.total.text)


def fold_title(fold: Fold, drawing: Drawing) -> tuple[str, ...]:
    """The text on the frame of an open fold: the first and the last module and how often, and the classes."""
    first, last = drawing.boxes[fold.boxes[0]], drawing.boxes[fold.boxes[-1]]
    classes = ", ".join(drawing.boxes[box].module_type for box in fold.repetition(0))
    return (f"{first.id} to {last.id} (x{fold.count})", classes)


def fold_lines(fold: Fold, drawing: Drawing) -> tuple[str, ...]:
    """The text on a closed fold: what stands on its frame, what its first module is, and the mark of all."""
    lines = (*fold_title(fold, drawing), *drawing.boxes[fold.boxes[0]].lines[2:])
    mark = fold_mark(fold, drawing)
    return lines if mark is None or not mark.text else (*lines, mark.text)


def fold_mark(fold: Fold, drawing: Drawing) -> Mark | None:
    """The mark of all modules of a fold together."""
    totals = [total for box in fold.boxes if (total := drawing.boxes[box].total) is not None]
    return total_mark(totals) if totals else None


def fold_style(fold: Fold, drawing: Drawing) -> Style:
    """The style of a closed fold: that of its first module."""
    return drawing.boxes[fold.boxes[0]].style
