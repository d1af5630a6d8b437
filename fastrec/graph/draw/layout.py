"""Places for everything in a drawing: nodes in nested boxes, and a route for each edge.

    layout = layout_of(Diagram(
        nodes=[DiagramNode(80, 30, box=0), DiagramNode(80, 30, box=1), DiagramNode(80, 30, box=0)],
        boxes=[DiagramBox(), DiagramBox(parent=0, title=(60, 34))],
        edges=[DiagramEdge(0, 1), DiagramEdge(1, 2), DiagramEdge(0, 2)],
    ))
    layout.nodes[1]                 # Rectangle(x, y, width, height)
    layout.routes[0].stations       # the vertical pieces of an edge, which bends between two of them

The whole graph is never laid out at once: each box is, with what lies directly in it as rectangles, from the innermost
boxes outwards (layers.py). Boxes that look alike are laid out once, which makes a deep network as cheap as one of its
blocks. An edge that leaves a box goes through a port on the lower side and enters another one through a port on the
upper side, one for each value, so that it never crosses a node. Edges that would be long stay out, and are drawn as
faint arcs. `fastrec/_web/graph/layout.js` does the same for the page, and a test holds both to the same numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from fastrec.graph.draw.layers import (
    DUMMIES_PER_ITEM,
    MAX_SPAN,
    Arranged,
    Item,
    Level,
    Net,
    NetTarget,
    Station,
    arrange,
    marks_width,
    ranks_of,
)

LOOP_WIDTH = 30  # what a node that reads its own value takes on its right

RouteKind = Literal["near", "far", "loop"]


class DiagramNode(msgspec.Struct, frozen=True):
    """A node: the size of its text, and the box that it lies in."""

    width: int
    height: int
    box: int = 0


class DiagramBox(msgspec.Struct, frozen=True):
    """An open box: the box that it lies in, and the size of its title. The first one is the paper, and lies in none.

    ``place`` is how many nodes stand before it.
    """

    parent: int = -1
    title: tuple[int, int] = (0, 0)
    place: int = 0


class DiagramEdge(msgspec.Struct, frozen=True):
    """An edge between two nodes; ``value`` tells edges apart that carry different values out of one node.

    ``head`` and ``tail`` are the widths of its marks.
    """

    source: int
    target: int
    head: int = 0
    tail: int = 0
    value: int = 0


class Diagram(msgspec.Struct, frozen=True):
    """What is to be laid out; nodes are in the order in which they ran."""

    nodes: Sequence[DiagramNode]
    boxes: Sequence[DiagramBox]
    edges: Sequence[DiagramEdge]


class Rectangle(NamedTuple):
    """A place."""

    x: int
    y: int
    width: int
    height: int


class EdgeRoute(msgspec.Struct, frozen=True):
    """The way of an edge from its upper end to its lower end.

    A ``far`` edge and a ``loop`` have the middles of the right sides of their ends for stations. A reversed one points
    upwards, to its first station. ``head`` and ``tail`` are where its marks stand: left of the line (-1) or right (1).
    """

    kind: RouteKind
    stations: tuple[Station, ...]
    is_reversed: bool = False
    head: int = 1
    tail: int = 1


class DrawingLayout(msgspec.Struct, frozen=True):
    """Where everything is."""

    nodes: list[Rectangle]
    boxes: list[Rectangle]
    routes: list[EdgeRoute]
    crossings: int

    @property
    def width(self) -> int:
        """The width of the paper."""
        return self.boxes[0].width

    @property
    def height(self) -> int:
        """The height of the paper."""
        return self.boxes[0].height


Value: TypeAlias = "tuple[int, int, bool]"
"""What an edge carries: its node, which value of it, and whether the edge points back."""


class Step(NamedTuple):
    """The part of an edge in one box: from an item to an item; -1 is a port of the box."""

    edge: int
    source: int
    target: int


class _Span(NamedTuple):
    """An edge in the tree of boxes: the boxes that it leaves and enters, from the inside, with the children in them.

    ``box`` is the innermost one around both ends, where the edge goes from one child to another.
    """

    box: int
    source: int
    target: int
    leaving: list[tuple[int, int]]
    entering: list[tuple[int, int]]


class Nesting:
    """What lies in which box, in which order, and the parts of each edge in the boxes that it passes.

    A child of a box is a node by its index, or a box as `-1 - index`.
    """

    def __init__(self, diagram: Diagram) -> None:
        self.diagram = diagram
        self.depths: list[int] = []
        for box in diagram.boxes:
            self.depths.append(0 if box.parent < 0 else self.depths[box.parent] + 1)
        self._loops = {edge.source for edge in diagram.edges if edge.source == edge.target}
        self.children: list[list[int]] = [[] for _ in diagram.boxes]
        children = [(box.place, -1 - index) for index, box in enumerate(diagram.boxes) if index]
        children += enumerate(range(len(diagram.nodes)))
        for _, child in sorted(children, key=lambda child: child[0]):  # a box comes before the node at its place
            self.children[self.parent(child)].append(child)

        spans = {i: self._span(edge) for i, edge in enumerate(diagram.edges) if edge.source != edge.target}
        pairs: list[list[tuple[int, int]]] = [[] for _ in diagram.boxes]
        for span in spans.values():
            pairs[span.box].append((span.source, span.target))
        self.children = [acyclic_order(*level) for level in zip(self.children, pairs, strict=True)]
        self.number = {child: number for children in self.children for number, child in enumerate(children)}

        self.steps: list[list[Step]] = [[] for _ in diagram.boxes]
        self.ways: list[list[int]] = [[] for _ in diagram.edges]  # the boxes that each edge passes, from above
        self.is_reversed = [False] * len(diagram.edges)
        self.is_far = [False] * len(diagram.edges)
        for index, span in spans.items():
            self._add(index, span)
        self.ranks = [self._ranked(box) for box in range(len(diagram.boxes))]

    def parent(self, child: int) -> int:
        """The box that a child lies in."""
        return self.diagram.nodes[child].box if child >= 0 else self.diagram.boxes[-1 - child].parent

    def value(self, edge: int) -> Value:
        """What an edge carries; edges that carry the same share their lines."""
        ends = self.diagram.edges[edge]
        return ends.source, ends.value, self.is_reversed[edge]

    def loop_width(self, node: int) -> int:
        """What a node needs on each side, so that its middle stays in the middle."""
        return LOOP_WIDTH if node in self._loops else 0

    def marks(self, edge: int) -> tuple[int, int]:
        """The widths of the marks at its upper end and at its lower end."""
        ends = self.diagram.edges[edge]
        return (ends.head, ends.tail) if self.is_reversed[edge] else (ends.tail, ends.head)

    def _span(self, edge: DiagramEdge) -> _Span:
        source, target = edge.source, edge.target
        above, below = self.parent(source), self.parent(target)
        leaving: list[tuple[int, int]] = []
        entering: list[tuple[int, int]] = []
        while above != below:
            if self.depths[above] >= self.depths[below]:
                leaving.append((above, source))
                source, above = -1 - above, self.diagram.boxes[above].parent
            else:
                entering.append((below, target))
                target, below = -1 - below, self.diagram.boxes[below].parent
        return _Span(above, source, target, leaving, entering)

    def _add(self, index: int, span: _Span) -> None:
        first, last = self.number[span.source], self.number[span.target]
        leaving, entering = span.leaving, span.entering
        if first > last:  # it points back, and is drawn from its target down to its source
            self.is_reversed[index] = True
            first, last, leaving, entering = last, first, entering, leaving
        for box, child in leaving:
            self.steps[box].append(Step(index, self.number[child], -1))
        self.steps[span.box].append(Step(index, first, last))
        for box, child in entering:
            self.steps[box].append(Step(index, -1, self.number[child]))
        self.ways[index] = [*(box for box, _ in leaving), span.box, *(box for box, _ in reversed(entering))]

    def _ranked(self, box: int) -> tuple[int, ...]:
        """The ranks of what lies in a box; edges that would be long there are far from now on."""
        steps, count = self.steps[box], len(self.children[box])
        fed = [False] * count
        for step in steps:
            if step.source < 0:
                fed[step.target] = True
        ranks = ranks_of(count, [(s.source, s.target) for s in steps if s.source >= 0 and s.target >= 0], fed)
        depth = max(ranks, default=-1) + 1

        def span(step: Step) -> int:
            upper = ranks[step.source] if step.source >= 0 else -1
            return (ranks[step.target] if step.target >= 0 else depth) - upper

        dummies, lengths = 0, dict[tuple[int, Value], int]()
        for step in sorted(steps, key=lambda step: (span(step), step.edge)):
            if self.is_far[step.edge]:
                continue
            chain = (step.source, self.value(step.edge))
            more = max(span(step) - 1 - lengths.get(chain, 0), 0)
            if span(step) > MAX_SPAN or dummies + more > DUMMIES_PER_ITEM * count:
                self.is_far[step.edge] = True
            else:
                dummies += more
                lengths[chain] = max(lengths.get(chain, 0), span(step) - 1)
        return tuple(ranks)


def acyclic_order(children: list[int], pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Children of a box in an order that as few edges as possible point back in; without cycles, none does.

    In a drawing of all operations that is the order in which they ran. In a rolled one a layer stands where it ran
    first, and what it reads in later passes may stand behind it; where that closes no cycle, it is moved forward.

    >>> acyclic_order([0, 1, 2, 3], [(0, 1), (1, 2), (2, 1), (3, 2)])
    [0, 1, 3, 2]
    """
    place = {child: number for number, child in enumerate(children)}
    pairs = list(dict.fromkeys(pairs))
    backward = [pair for pair in pairs if place[pair[0]] > place[pair[1]]]
    if not backward:
        return children
    below: dict[int, list[int]] = {child: [] for child in children}
    for source, target in pairs:
        if place[source] < place[target]:
            below[source].append(target)
    for source, target in backward:
        if not _reaches(below, target, source):
            below[source].append(target)
    return _topological(children, below)


def _topological(children: Sequence[int], below: Mapping[int, Sequence[int]]) -> list[int]:
    """Each child as early as it stood, but behind all that it is below of."""
    place = {child: number for number, child in enumerate(children)}
    waiting = Counter(target for targets in below.values() for target in targets)
    free = [place[child] for child in children if not waiting[child]]
    order = []
    while free:
        child = children[heappop(free)]
        order.append(child)
        for target in below[child]:
            waiting[target] -= 1
            if not waiting[target]:
                heappush(free, place[target])
    return order


def _reaches(below: Mapping[int, Sequence[int]], start: int, end: int) -> bool:
    seen, todo = {start}, [start]
    while todo:
        for child in below[todo.pop()]:
            if child == end:
                return True
            if child not in seen:
                seen.add(child)
                todo.append(child)
    return False


class BoxInterior(NamedTuple):
    """One box, laid out: the ports of its values, and for each edge in it the net and the target that it is."""

    items: tuple[Item, ...]
    arranged: Arranged
    entering: dict[Value, int]
    leaving: dict[Value, int]
    places: dict[int, tuple[int, int]]

    def port_in(self, value: Value) -> int:
        """Where a value comes in."""
        return self.arranged.ports_in[self.entering[value]]

    def port_out(self, value: Value) -> int:
        """Where a value goes out."""
        return self.arranged.ports_out[self.leaving[value]]


def layout_of(diagram: Diagram) -> DrawingLayout:
    """Lay out a diagram.

    >>> layout_of(Diagram([DiagramNode(80, 30), DiagramNode(80, 30)], [DiagramBox()], [DiagramEdge(0, 1)])).nodes
    [Rectangle(x=14, y=14, width=80, height=30), Rectangle(x=14, y=64, width=80, height=30)]

    Arguments:
        diagram: nodes in the order in which they ran, boxes each behind the one that it lies in, the paper first.

    Returns a Layout in whole numbers.
    """
    nesting = Nesting(diagram)
    cache: dict[Level, Arranged] = {}
    insides: dict[int, BoxInterior] = {}
    for box in range(len(diagram.boxes) - 1, -1, -1):
        insides[box] = _inside(nesting, box, insides, cache)
    return _assembled(nesting, [insides[box] for box in range(len(diagram.boxes))])


def _inside(nesting: Nesting, box: int, insides: dict[int, BoxInterior], cache: dict[Level, Arranged]) -> BoxInterior:
    steps = [step for step in nesting.steps[box] if not nesting.is_far[step.edge]]
    entering, leaving = (
        {value: port for port, value in enumerate(sorted({nesting.value(edge) for edge in edges}))}
        for edges in ([s.edge for s in steps if s.source < 0], [s.edge for s in steps if s.target < 0])
    )
    children = nesting.children[box]
    nets: dict[tuple[int, Value], tuple[Net, list[NetTarget]]] = {}
    numbers: dict[tuple[int, Value], int] = {}
    places: dict[int, tuple[int, int]] = {}
    for step in steps:
        value = nesting.value(step.edge)
        tail, head = nesting.marks(step.edge)
        key = step.source, value
        if key not in nets:
            numbers[key] = len(nets)
            if step.source < 0:
                net = Net(-1 - entering[value], 0, ())
            elif (child := children[step.source]) < 0:
                net = Net(step.source, insides[-1 - child].port_out(value), ())
            else:
                net = Net(step.source, -1, (), tail)
            nets[key] = net, []
        targets = nets[key][1]
        if step.target < 0:
            target = NetTarget(-1 - leaving[value], 0)
        elif (child := children[step.target]) < 0:
            target = NetTarget(step.target, insides[-1 - child].port_in(value))
        else:
            target = NetTarget(step.target, -1, head)
        # Edges to the same port are one line; each edge to a node has an end of its own, for its mark.
        if target.x < 0 or target not in targets:
            targets.append(target)
        places[step.edge] = numbers[key], len(targets) - 1 if target.x < 0 else targets.index(target)
    level = Level(
        _items(nesting, box, nets.values(), insides),
        nesting.diagram.boxes[box].title,
        len(entering),
        len(leaving),
        tuple(net._replace(targets=tuple(targets)) for net, targets in nets.values()),
        nesting.ranks[box],
    )
    if level not in cache:
        cache[level] = arrange(level)
    return BoxInterior(level.items, cache[level], entering, leaving, places)


def _items(
    nesting: Nesting, box: int, nets: Iterable[tuple[Net, list[NetTarget]]], insides: dict[int, BoxInterior]
) -> tuple[Item, ...]:
    """What lies in a box, as rectangles; a node is as wide as its text and the marks of its edges need."""
    heads: dict[int, list[int]] = {}
    tails: dict[int, list[int]] = {}
    for net, targets in nets:
        tails.setdefault(net.source, []).append(net.mark)
        for target in targets:
            heads.setdefault(target.item, []).append(target.mark)
    items = []
    for number, child in enumerate(nesting.children[box]):
        if child < 0:
            arranged = insides[-1 - child].arranged
            items.append(Item(arranged.width, arranged.height))
            continue
        node = nesting.diagram.nodes[child]
        head, tail = marks_width(heads.get(number, ())), marks_width(tails.get(number, ()))
        width = max(node.width, head, tail) + 2 * nesting.loop_width(child)
        items.append(Item(width, node.height, head > 0, tail > 0))
    return tuple(items)


def _assembled(nesting: Nesting, insides: Sequence[BoxInterior]) -> DrawingLayout:
    """Everything on one paper."""
    diagram = nesting.diagram
    nodes = [Rectangle(0, 0, 0, 0)] * len(diagram.nodes)
    boxes = [Rectangle(0, 0, inside.arranged.width, inside.arranged.height) for inside in insides]
    for index, inside in enumerate(insides):
        rectangle = boxes[index]
        for child, (x, y) in zip(nesting.children[index], inside.arranged.positions, strict=True):
            if child < 0:
                boxes[-1 - child] = boxes[-1 - child]._replace(x=rectangle.x + x, y=rectangle.y + y)
            else:
                loop, item = nesting.loop_width(child), inside.items[nesting.number[child]]
                nodes[child] = Rectangle(rectangle.x + x + loop, rectangle.y + y, item.width - 2 * loop, item.height)
    routes = [_route(nesting, edge, insides, nodes, boxes) for edge in range(len(diagram.edges))]
    return DrawingLayout(nodes, boxes, routes, sum(inside.arranged.crossings for inside in insides))


def _route(
    nesting: Nesting, edge: int, insides: Sequence[BoxInterior], nodes: Sequence[Rectangle], boxes: Sequence[Rectangle]
) -> EdgeRoute:
    ends = nesting.diagram.edges[edge]
    if ends.source == ends.target or nesting.is_far[edge]:
        kind: RouteKind = "loop" if ends.source == ends.target else "far"
        sides = [
            (rectangle.x + rectangle.width, rectangle.y + rectangle.height // 2)
            for rectangle in (nodes[ends.source], nodes[ends.target])
        ]
        return EdgeRoute(kind, tuple(Station(x, y, y) for x, y in sides))
    stations: list[Station] = []
    head = tail = 1
    for number, box in enumerate(nesting.ways[edge]):
        x, y = boxes[box].x, boxes[box].y
        arranged = insides[box].arranged
        net, target = insides[box].places[edge]
        for station in arranged.routes[net][target]:
            station = Station(x + station.x, y + station.top, y + station.bottom)
            if stations and stations[-1].x == station.x and stations[-1].bottom == station.top:
                station = Station(station.x, stations.pop().top, station.bottom)
            stations.append(station)
        tail = arranged.tails[net] if number == 0 else tail
        head = arranged.heads[net][target]
    if nesting.is_reversed[edge]:
        head, tail = tail, head
    return EdgeRoute("near", tuple(stations), nesting.is_reversed[edge], head, tail)
