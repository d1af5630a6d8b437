"""Where things are: nothing overlaps, everything lies in its box, every edge runs from its start to its end once."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrec.graph.draw.diagram import diagram_of
from fastrec.graph.draw.layers import MAX_SPAN, PADDING, Item, Level, Net, NetTarget, arrange, marks_width, ranks_of
from fastrec.graph.draw.layout import (
    Diagram,
    DiagramBox,
    DiagramEdge,
    DiagramNode,
    DrawingLayout,
    Rectangle,
    acyclic_order,
    layout_of,
)
from fastrec.graph.draw.view import opening_at, view_of
from tests.graph.draw.diagrams import random_diagram
from tests.graph.draw.drawn_models import history_of

seeds = st.integers(0, 10**6)


def chain(*edges: tuple[int, int], count: int = 0) -> DrawingLayout:
    """The layout of nodes on one paper."""
    count = count or 1 + max(map(max, edges), default=0)
    return layout_of(Diagram([DiagramNode(60, 30)] * count, [DiagramBox()], [DiagramEdge(*edge) for edge in edges]))


def overlap(a: Rectangle, b: Rectangle) -> bool:
    return a.x < b.x + b.width and b.x < a.x + a.width and a.y < b.y + b.height and b.y < a.y + a.height


def is_inside(inner: Rectangle, outer: Rectangle) -> bool:
    return (
        outer.x <= inner.x
        and outer.y <= inner.y
        and inner.x + inner.width <= outer.x + outer.width
        and inner.y + inner.height <= outer.y + outer.height
    )


def siblings(diagram: Diagram, layout: DrawingLayout) -> list[list[Rectangle]]:
    """For each box what lies directly in it."""
    found: list[list[Rectangle]] = [[] for _ in diagram.boxes]
    for node, place in zip(diagram.nodes, layout.nodes, strict=True):
        found[node.box].append(place)
    for box, place in list(zip(diagram.boxes, layout.boxes, strict=True))[1:]:
        found[box.parent].append(place)
    return found


@given(seeds)
@settings(max_examples=60)
def test_nothing_overlaps_and_everything_lies_in_its_box(seed: int) -> None:
    diagram = random_diagram(seed)
    layout = layout_of(diagram)
    for box, places in zip(layout.boxes, siblings(diagram, layout), strict=True):
        assert all(is_inside(place, box) for place in places)
        assert not any(overlap(a, b) for a, b in combinations(places, 2))
    for node, place in zip(diagram.nodes, layout.nodes, strict=True):
        assert place.width >= node.width and place.height == node.height


@given(seeds)
@settings(max_examples=60)
def test_every_edge_runs_down_from_its_upper_end_to_its_lower_end(seed: int) -> None:
    diagram = random_diagram(seed)
    layout = layout_of(diagram)
    assert len(layout.routes) == len(diagram.edges)
    for edge, route in zip(diagram.edges, layout.routes, strict=True):
        if route.kind != "near":
            assert (route.kind == "loop") == (edge.source == edge.target)
            continue
        upper, lower = layout.nodes[edge.source], layout.nodes[edge.target]
        if route.is_reversed:
            upper, lower = lower, upper
        first, last = route.stations[0], route.stations[-1]
        assert first.top == upper.y + upper.height and upper.x <= first.x <= upper.x + upper.width
        assert last.bottom == lower.y and lower.x <= last.x <= lower.x + lower.width
        heights = [y for station in route.stations for y in (station.top, station.bottom)]
        assert heights == sorted(heights)


@given(seeds)
@settings(max_examples=60)
def test_no_near_edge_crosses_a_node_or_the_title_of_a_box(seed: int) -> None:
    diagram = random_diagram(seed)
    layout = layout_of(diagram)
    titles = [Rectangle(place.x, place.y, *box.title) for box, place in zip(diagram.boxes, layout.boxes, strict=True)][
        1:
    ]
    for route in layout.routes:
        if route.kind != "near":
            continue
        pieces = [Rectangle(s.x, s.top, 0, s.bottom - s.top) for s in route.stations]
        for a, b in zip(route.stations, route.stations[1:], strict=False):
            pieces.append(Rectangle(min(a.x, b.x), a.bottom, abs(a.x - b.x), b.top - a.bottom))
        assert not [(piece, node) for piece in pieces for node in layout.nodes if overlap(piece, node)]
        assert not [(piece, title) for piece in pieces for title in titles if overlap(piece, title)]


@given(seeds)
@settings(max_examples=30)
def test_a_box_is_laid_out_alike_whatever_stands_beside_it(seed: int) -> None:
    diagram = random_diagram(seed)
    alone, twice = layout_of(diagram), layout_of(side_by_side(diagram))
    count = len(diagram.nodes)
    shifts = {(b.x - a.x, b.y - a.y) for a, b in zip(alone.nodes * 2, twice.nodes, strict=True)}
    assert len(shifts) == 2 and len(twice.nodes) == 2 * count


def side_by_side(diagram: Diagram) -> Diagram:
    """Two of the same, each in a box of its own."""
    nodes, boxes, edges = [], [DiagramBox()], []
    for place in (0, len(diagram.nodes)):
        first = len(boxes)
        boxes += [
            DiagramBox(box.parent + first if box.parent >= 0 else 0, box.title, box.place + place)
            for box in diagram.boxes
        ]
        nodes += [DiagramNode(node.width, node.height, node.box + first) for node in diagram.nodes]
        edges += [
            DiagramEdge(edge.source + place, edge.target + place, edge.head, edge.tail, edge.value)
            for edge in diagram.edges
        ]
    return Diagram(nodes, boxes, edges)


def test_a_chain_stands_straight_beside_its_skip_connection() -> None:
    layout = chain((0, 1), (1, 2), (2, 3), (0, 3))
    assert len({place.x for place in layout.nodes}) == 1
    skip = layout.routes[-1].stations
    assert len({station.x for station in skip}) == 2 and skip[1].x >= layout.nodes[1].x + layout.nodes[1].width


def test_branches_spread_evenly_and_their_join_stands_in_the_middle() -> None:
    layout = chain((0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4))
    xs = [place.x for place in layout.nodes]
    assert xs[2] - xs[1] == xs[3] - xs[2] > 0 and xs[0] == xs[2] == xs[4]


def test_a_constant_stands_above_its_reader_and_does_not_push_the_chain_aside() -> None:
    layout = chain((0, 1), (1, 2), (2, 4), (3, 4))
    assert layout.nodes[3].y == layout.nodes[2].y > layout.nodes[1].y
    assert len({layout.nodes[node].x for node in (0, 1, 2, 4)}) == 1


def test_edges_over_more_ranks_than_the_layout_takes_are_far() -> None:
    count = MAX_SPAN + 2
    steps = [(node, node + 1) for node in range(count)]
    kinds = [route.kind for route in chain(*steps, (0, MAX_SPAN), (0, MAX_SPAN + 1)).routes]
    assert kinds == ["near"] * count + ["near", "far"]


def test_a_complete_graph_comes_to_an_end() -> None:
    layout = chain(*combinations(range(200), 2))
    far = [route for route in layout.routes if route.kind == "far"]
    assert len(layout.routes) == 19900 and len(far) > 18000


def test_an_edge_that_closes_a_cycle_points_back_and_any_other_down() -> None:
    routes = chain((0, 1), (1, 2), (2, 1), (3, 2)).routes
    assert [route.is_reversed for route in routes] == [False, False, True, False]
    assert acyclic_order([0, 1, 2, 3], [(0, 1), (1, 2), (2, 1), (3, 2)]) == [0, 1, 3, 2]
    assert acyclic_order([4, 2, 7], [(4, 7)]) == [4, 2, 7]


def test_marks_get_room_beside_each_other_in_the_order_of_their_starts() -> None:
    nodes = [DiagramNode(60, 30)] * 4
    edges = [DiagramEdge(0, 3, 40), DiagramEdge(1, 3, 50), DiagramEdge(2, 3, 60)]
    layout = layout_of(Diagram(nodes, [DiagramBox()], edges))
    ends = [(route.stations[-1].x, route.head) for route in layout.routes]
    assert layout.nodes[3].width == marks_width([40, 50, 60]) >= 150
    assert [x for x, _ in ends] == sorted(x for x, _ in ends)
    spans = [
        (x, x + 5 + width) if side > 0 else (x - 5 - width, x)
        for (x, side), width in zip(ends, (40, 50, 60), strict=True)
    ]
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_edges_of_one_value_share_a_port_and_different_values_do_not() -> None:
    nodes = [DiagramNode(60, 30), DiagramNode(60, 30), DiagramNode(60, 30, 1), DiagramNode(60, 30, 1)]
    edges = [DiagramEdge(0, 2), DiagramEdge(0, 3), DiagramEdge(1, 3)]
    layout = layout_of(Diagram(nodes, [DiagramBox(), DiagramBox(0, (40, 30), 2)], edges))
    top = layout.boxes[1].y
    entries = [next(s.x for s in route.stations if s.top <= top <= s.bottom) for route in layout.routes]
    assert entries[0] == entries[1] != entries[2]


def test_ranks_keep_what_is_fed_and_move_the_rest_down() -> None:
    assert ranks_of(4, [(0, 1), (1, 3), (2, 3)], [True, False, False, False]) == [0, 1, 1, 2]
    assert ranks_of(4, [(0, 1), (1, 3), (2, 3)], [True, False, True, False]) == [0, 1, 0, 2]
    assert ranks_of(0, [], []) == []


def test_an_empty_box_has_room_for_its_title() -> None:
    arranged = arrange(Level((), (50, 30), 0, 0, (), ()))
    assert (arranged.width, arranged.height) == (50 + PADDING, 30 + PADDING)


def test_crossings_that_can_be_avoided_are() -> None:
    items = (Item(40, 20),) * 6
    nets = tuple(Net(source, -1, (NetTarget(target, -1),)) for source, target in ((0, 5), (1, 4), (2, 3)))
    assert arrange(Level(items, (0, 0), 0, 0, nets, (0, 0, 0, 1, 1, 1))).crossings == 0


@pytest.mark.parametrize(("name", "most"), [("transformer", 0), ("branches", 1), ("recurrent", 1), ("dense", 60)])
def test_models_are_drawn_with_few_crossings(name: str, most: int) -> None:
    for mode in ("unrolled", "rolled"):
        drawing = history_of(name).drawing(vis_mode=mode)
        layout = layout_of(diagram_of(view_of(drawing, opening_at(drawing, None, folded=False))))
        assert layout.crossings <= most
