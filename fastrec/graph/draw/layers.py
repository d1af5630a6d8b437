"""The inside of one box, laid out in layers: items in ranks, edges as chains between neighbouring ranks.

A box's items are nodes and other boxes, each a rectangle by now. They stand in the order in which they ran, so that
every edge goes from a lower number to a higher one. Edges that come into the box start at ports on its upper side,
edges that leave it end at ports on its lower side.

    >>> level = Level((Item(40, 20), Item(40, 20)), (0, 0), 0, 0, (Net(0, 20, (NetTarget(1, 20),)),), (0, 1))
    >>> arrange(level).positions
    [(14, 14), (14, 54)]

The method is that of Sugiyama, with each step as plain as it can be, because `fastrec/_web/graph/layers.js` has to come
to the same numbers: ranks by longest path, one dummy per rank for each value that passes it (edges that carry the same
value share theirs), barycenters for the order, and for the places the weighted least squares of each rank in turn,
which pooling neighbours solves exactly. Sums are taken in the same order on both sides, so that the numbers are equal
to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import NamedTuple

import msgspec

MAX_SPAN = 10
"""An edge over more ranks stays out of the layout: on dense graphs such edges break every method."""

DUMMIES_PER_ITEM = 3
"""Chains that would take more dummies than this stay out as well; without it a complete graph does not end."""

ORDER_SWEEPS = 8
PLACE_SWEEPS = 10
STRAIGHTENINGS = 3

NODE_GAP = 22  # between the nodes of a rank
LINE_GAP = 12  # between a node and a line that passes it, and between two lines
RANK_GAP = 20  # between ranks; more where edges bend far
MAX_RANK_GAP = 76
PADDING = 14  # between a box and what is in it
MARK_HEIGHT = 15  # the strip above a node for the marks of its edges
MARK_PADDING = 9  # beside a mark

ITEM_WEIGHT = 4096.0  # how much more an item keeps to its wish than a line does: lines give way, layers stay straight
LOOSE_WEIGHT = 4.0  # of an item with nothing above it, or nothing below


class Item(NamedTuple):
    """A rectangle to place. ``heads`` is whether the edges that arrive have marks, ``tails`` those that leave."""

    width: int
    height: int
    heads: bool = False
    tails: bool = False


class NetTarget(NamedTuple):
    """One end of a net: an item, or the outgoing port `-1 - number`; ``x`` is where on its upper side.

    -1 leaves that to the layout, which lays the ends at one node side by side, each as wide as its mark.
    """

    item: int
    x: int
    mark: int = 0


class Net(NamedTuple):
    """The edges that carry one value out of an item, or out of the incoming port `-1 - number`.

    ``x`` and ``mark`` are those of a target, on the lower side of the source.
    """

    source: int
    x: int
    targets: tuple[NetTarget, ...]
    mark: int = 0


class Level(NamedTuple):
    """A box to lay out: its items in order, the size of its title, its ports, nets and ranks."""

    items: tuple[Item, ...]
    title: tuple[int, int]
    ports_in: int
    ports_out: int
    nets: tuple[Net, ...]
    ranks: tuple[int, ...]


class Station(NamedTuple):
    """A vertical piece of an edge; between two of them it bends."""

    x: int
    top: int
    bottom: int


class Arranged(NamedTuple):
    """A box laid out: upper left corners of its items, its size, the places of its ports, a route for each target.

    ``heads`` tells for each target, ``tails`` for each net, whether its mark stands left of its end (-1) or right (1).
    """

    positions: list[tuple[int, int]]
    width: int
    height: int
    ports_in: list[int]
    ports_out: list[int]
    routes: list[list[list[Station]]]
    heads: list[list[int]]
    tails: list[int]
    crossings: int


class Link(msgspec.Struct, gc=False):
    """A piece of an edge between neighbouring ranks; offsets are from the middles of its ends."""

    upper: int
    upper_x: float
    lower: int
    lower_x: float


class Grid:
    """The vertices of a level in their ranks: items, ports, and the dummies of chains."""

    def __init__(self, level: Level) -> None:
        self.level = level
        count = len(level.items)
        self.first_in, self.first_out = count, count + level.ports_in
        self.first_dummy = self.first_out + level.ports_out
        shift = 1 if level.ports_in else 0
        last = max(level.ranks, default=-1) + 1 + shift
        self.ranks = [rank + shift for rank in level.ranks] + [0] * level.ports_in + [last] * level.ports_out
        self.widths = [item.width for item in level.items] + [0] * (level.ports_in + level.ports_out)
        self.links: list[Link] = []
        self.chains: list[list[int]] = []  # for each net its dummies, from above
        self.starts: list[list[Link]] = []  # for each net the links that leave its source
        self.ends: list[list[Link]] = []  # for each net and target the link that arrives
        for net in level.nets:
            self._add(net)
        self.heads = [[1] * len(net.targets) for net in level.nets]
        self.tails = [1] * len(level.nets)
        depth = max(self.ranks, default=-1) + 1
        self.layers: list[list[int]] = [[] for _ in range(depth)]
        for vertex, rank in enumerate(self.ranks):
            self.layers[rank].append(vertex)
        self.up: list[list[Link]] = [[] for _ in self.ranks]
        self.down: list[list[Link]] = [[] for _ in self.ranks]
        self.arriving: list[list[Link]] = [[] for _ in range(depth)]
        for link in self.links:
            self.up[link.lower].append(link)
            self.down[link.upper].append(link)
            self.arriving[self.ranks[link.lower]].append(link)

    def source(self, net: Net) -> int:
        """The vertex that a net starts from."""
        return net.source if net.source >= 0 else self.first_in - 1 - net.source

    def target(self, target: NetTarget) -> int:
        """The vertex that a target is."""
        return target.item if target.item >= 0 else self.first_out - 1 - target.item

    def _add(self, net: Net) -> None:
        source = self.source(net)
        offset = net.x - self.widths[source] / 2 if net.source >= 0 and net.x >= 0 else 0.0
        first = self.ranks[source] + 1
        chain: list[int] = []
        start = len(self.links)
        ends = []
        for target in net.targets:
            lower = self.target(target)
            for rank in range(first + len(chain), self.ranks[lower]):
                self.links.append(Link(chain[-1] if chain else source, 0.0 if chain else offset, len(self.ranks), 0.0))
                chain.append(len(self.ranks))
                self.ranks.append(rank)
                self.widths.append(0)
            passed = self.ranks[lower] - first
            arrival = target.x - self.widths[lower] / 2 if target.item >= 0 and target.x >= 0 else 0.0
            link = Link(chain[passed - 1] if passed else source, 0.0 if passed else offset, lower, arrival)
            self.links.append(link)
            ends.append(link)
        self.chains.append(chain)
        self.starts.append([link for link in self.links[start:] if link.upper == source])
        self.ends.append(ends)

    def pull(self, vertex: int, *, upper: bool) -> int:
        """How much an item counts that has this vertex above or below it: a line little, a loose end more."""
        if vertex >= self.first_dummy:
            return 0
        is_port = vertex >= self.first_in
        return 2 if is_port or (self.up[vertex] if upper else self.down[vertex]) else 1

    def separation(self, left: int, right: int) -> float:
        """How far the middles of neighbours are apart at least."""
        gap = NODE_GAP if self.widths[left] and self.widths[right] else LINE_GAP
        return (self.widths[left] + self.widths[right]) / 2 + gap


def ranks_of(count: int, edges: Sequence[tuple[int, int]], fed: Sequence[bool]) -> list[int]:
    """The rank of each item: one below the lowest that it reads.

    What comes from the start of the box stays up: items that are ``fed`` from outside, or the first one where none is,
    and all that follows from them. What does not (constants, buffers, positions and what is computed from them) moves
    down to its first reader, where people look for it.
    """
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for upper, lower in edges:
        above[lower].append(upper)
        below[upper].append(lower)
    ranks = [0] * count
    anchored = list(fed)
    if count and not any(anchored):
        anchored[0] = True
    for item in range(count):
        for parent in above[item]:
            ranks[item] = max(ranks[item], ranks[parent] + 1)
            anchored[item] = anchored[item] or anchored[parent]
    for item in range(count - 1, -1, -1):
        if not anchored[item] and below[item]:
            ranks[item] = min(ranks[child] for child in below[item]) - 1
    return ranks


def arrange(level: Level) -> Arranged:
    """Lay out one box."""
    grid = Grid(level)
    crossings = _order(grid)
    _spread(grid)
    return _assembled(grid, _places(grid), crossings)


def _order(grid: Grid) -> int:
    """Sort each rank by barycenters, from above and from below in turn; keep the order with the fewest crossings."""
    position = [0.0] * len(grid.ranks)
    for layer in grid.layers:
        _number(layer, position)
    depth = len(grid.layers)
    fewest, kept = -1, grid.layers
    for sweep in range(ORDER_SWEEPS):
        downwards = sweep % 2 == 0
        for index in range(1, depth) if downwards else range(depth - 2, -1, -1):
            _sort(grid, index, position, downwards=downwards)
        crossings = _crossings(grid, position)
        if fewest < 0 or crossings < fewest:
            fewest, kept = crossings, [list(layer) for layer in grid.layers]
        if fewest == 0:
            break
    grid.layers = kept
    return fewest


def _number(layer: Sequence[int], position: list[float]) -> None:
    for place, vertex in enumerate(layer):
        position[vertex] = float(place)


def _sort(grid: Grid, index: int, position: list[float], *, downwards: bool) -> None:
    layer = grid.layers[index]
    keys: dict[int, float] = {}
    for vertex in layer:
        total, links = 0.0, grid.up[vertex] if downwards else grid.down[vertex]
        for link in links:
            total += _upper(grid, link, position) if downwards else _lower(grid, link, position)
        keys[vertex] = total / len(links) if links else position[vertex]
    layer.sort(key=lambda vertex: (keys[vertex], position[vertex]))
    _number(layer, position)


def _upper(grid: Grid, link: Link, position: Sequence[float]) -> float:
    """Where a link starts in its rank; on a wide vertex, links that leave side by side are told apart."""
    return position[link.upper] + link.upper_x / (grid.widths[link.upper] + 1)


def _lower(grid: Grid, link: Link, position: Sequence[float]) -> float:
    return position[link.lower] + link.lower_x / (grid.widths[link.lower] + 1)


def _crossings(grid: Grid, position: Sequence[float]) -> int:
    """How many pairs of links cross: sorted by their upper ends, the inversions of their lower ends."""
    count = 0
    for links in grid.arriving:
        pairs = sorted((_upper(grid, link, position), _lower(grid, link, position)) for link in links)
        ends = sorted({lower for _, lower in pairs})
        number = {end: place for place, end in enumerate(ends, 1)}
        tree = [0] * (len(ends) + 1)  # Fenwick's: how many ends lie at or left of a place
        for seen, (_, lower) in enumerate(pairs):
            place, left = number[lower], 0
            while place > 0:
                left += tree[place]
                place -= place & -place
            count += seen - left
            place = number[lower]
            while place <= len(ends):
                tree[place] += 1
                place += place & -place
    return count


def _spread(grid: Grid) -> None:
    """Lay the ends of edges with marks side by side along their node, in the order of their other ends."""
    position = [0.0] * len(grid.ranks)
    for layer in grid.layers:
        _number(layer, position)
    _spread_heads(grid, position)
    nets = grid.level.nets
    leaving: dict[int, list[tuple[float, int]]] = {}
    for number, net in enumerate(nets):
        if net.source >= 0 and net.x < 0:
            place = min(_lower(grid, link, position) for link in grid.starts[number])
            leaving.setdefault(net.source, []).append((place, number))
    for starts in map(sorted, leaving.values()):
        for (_, number), slot in zip(starts, _slots([nets[n].mark for _, n in starts]), strict=True):
            for link in grid.starts[number]:
                link.upper_x, grid.tails[number] = slot


def _spread_heads(grid: Grid, position: Sequence[float]) -> None:
    nets = grid.level.nets
    arriving: dict[int, list[tuple[float, int, int]]] = {}
    for number, net in enumerate(nets):
        for end, target in enumerate(net.targets):
            if target.item >= 0 and target.x < 0:
                place = _upper(grid, grid.ends[number][end], position)
                arriving.setdefault(target.item, []).append((place, number, end))
    for ends in map(sorted, arriving.values()):
        for (_, number, end), slot in zip(ends, _slots([nets[n].targets[e].mark for _, n, e in ends]), strict=True):
            grid.ends[number][end].lower_x, grid.heads[number][end] = slot


def marks_width(marks: Sequence[int]) -> int:
    """How wide a side of a node must be for edges side by side with marks of some widths, 0 for none; even."""
    if not any(marks):
        return 0
    width = 2 * (marks[0] + MARK_PADDING) if len(marks) == 1 else sum(map(_slot, marks))
    return width + width % 2


def _slot(mark: int) -> int:
    """The room of one of several lines; lines without a mark need that of a line."""
    return mark + 2 * MARK_PADDING if mark else LINE_GAP


def _slots(marks: Sequence[int]) -> list[tuple[float, int]]:
    """For each of some lines side by side: how far it is from the middle, and on which side of it its mark stands.

    The marks of the left half stand on the left of their lines, so that the lines stay near the middle.
    """
    if not any(marks) or len(marks) == 1:
        return [(0.0, 1)] * len(marks)
    slots, left = [], -sum(map(_slot, marks)) / 2
    for place, mark in enumerate(marks):
        side = -1 if place < len(marks) // 2 else 1
        inset = MARK_PADDING / 2 if mark else LINE_GAP / 2
        slots.append((left + _slot(mark) - inset if side < 0 else left + inset, side))
        left += _slot(mark)
    return slots


def _places(grid: Grid) -> list[float]:
    """The middles of the vertices: each rank in turn as near as possible to its neighbours, down and up again."""
    places = [0.0] * len(grid.ranks)
    for layer in grid.layers:
        left = 0.0
        for place, vertex in enumerate(layer):
            if place:
                left += grid.separation(layer[place - 1], vertex)
            places[vertex] = left
        for vertex in layer:
            places[vertex] -= left / 2
    depth = len(grid.layers)
    for sweep in range(PLACE_SWEEPS + 1):
        downwards = sweep % 2 == 0
        for index in range(depth) if downwards else range(depth - 1, -1, -1):
            _settle(grid, grid.layers[index], places, downwards=downwards)
    columns = _columns(grid)
    for _ in range(STRAIGHTENINGS):
        _straighten(grid, columns, places)
    return places


def _settle(grid: Grid, layer: Sequence[int], places: list[float], *, downwards: bool) -> None:
    """Move a rank to where the weighted squares of the distances from its wishes are least, its order kept.

    With the separations taken off, that is an isotonic regression: neighbours that would overlap are pooled.
    """
    starts: list[float] = []
    pools: list[tuple[float, float, int]] = []  # weight, weighted sum, how many
    start = 0.0
    for place, vertex in enumerate(layer):
        if place:
            start += grid.separation(layer[place - 1], vertex)
        starts.append(start)
        wish, weight = _wish(grid, vertex, places, downwards=downwards)
        pool = (weight, weight * (wish - start), 1)
        while pools and pools[-1][1] / pools[-1][0] > pool[1] / pool[0]:
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1], before[2] + pool[2])
        pools.append(pool)
    number = 0
    for weight, total, count in pools:
        for vertex in layer[number : number + count]:
            places[vertex] = total / weight + starts[number]
            number += 1


def _wish(grid: Grid, vertex: int, places: Sequence[float], *, downwards: bool) -> tuple[float, float]:
    """Where a vertex would like to be, and how much.

    An item follows its neighbours in the next rank. Loose ends (a constant that is read, a check that nothing reads)
    and lines that pass by move it only where there is nothing else, so that a chain of layers stays straight beside its
    skip connection. A line follows its pieces above and below, and leans to its ends.
    """
    above, below = grid.up[vertex], grid.down[vertex]
    is_dummy = vertex >= grid.first_dummy
    links = above + below if is_dummy else (above or below) if downwards else (below or above)
    if not links:
        return places[vertex], 1.0
    best, total, weight = -1, 0.0, 0.0
    for link in links:
        if link.lower == vertex:
            other, wish = link.upper, places[link.upper] + link.upper_x - link.lower_x
        else:
            other, wish = link.lower, places[link.lower] + link.lower_x - link.upper_x
        if is_dummy:
            share = 8.0 if other >= grid.first_dummy else 1.0
        else:
            share = 1.0
            pull = grid.pull(other, upper=link.lower == vertex)
            if pull < best:
                continue
            if pull > best:
                best, total, weight = pull, 0.0, 0.0
        total += wish * share
        weight += share
    if is_dummy:
        return total / weight, 1.0
    return total / weight, ITEM_WEIGHT if (above and below) or vertex >= grid.first_in else LOOSE_WEIGHT


def _columns(grid: Grid) -> list[list[tuple[int, float]]]:
    """Chains of vertices that should stand below each other, each with its offset from the first.

    Dummies of one chain do, and items of which one is the only neighbour that counts of the other, both ways.
    """
    follows: dict[int, Link] = {}
    for vertex in range(len(grid.ranks)):
        below = _only(grid, grid.down[vertex], upper=False, is_dummy=vertex >= grid.first_dummy)
        if below is not None:
            is_dummy = below.lower >= grid.first_dummy
            if is_dummy == (vertex >= grid.first_dummy):
                above = _only(grid, grid.up[below.lower], upper=True, is_dummy=is_dummy)
                if above is below:
                    follows[vertex] = below
    lower_ends = {link.lower for link in follows.values()}
    columns = []
    for vertex in range(len(grid.ranks)):
        if vertex in follows and vertex not in lower_ends:
            column, offset = [(vertex, 0.0)], 0.0
            while column[-1][0] in follows:
                link = follows[column[-1][0]]
                offset += link.upper_x - link.lower_x
                column.append((link.lower, offset))
            columns.append(column)
    return columns


def _only(grid: Grid, links: Sequence[Link], *, upper: bool, is_dummy: bool) -> Link | None:
    """The one link on a side of a vertex that counts most, None where several do."""
    best, only = -1, None
    for link in links:
        other = link.upper if upper else link.lower
        rank = int(other >= grid.first_dummy) if is_dummy else grid.pull(other, upper=upper)
        if rank > best:
            best, only = rank, link
        elif rank == best:
            only = None
    return only


def _straighten(grid: Grid, columns: Sequence[Sequence[tuple[int, float]]], places: list[float]) -> None:
    """Make each column straight where there is a place that is free in all of its ranks.

    Items stay near where they are, lines as near as they can to their ends.
    """
    beside: dict[int, tuple[int, int]] = {}
    for layer in grid.layers:
        for left, vertex, right in zip([-1, *layer], layer, [*layer[1:], -1], strict=False):
            beside[vertex] = (left, right)
    for column in columns:
        low, high = float("-inf"), float("inf")
        for vertex, offset in column:
            left, right = beside[vertex]
            low = max(low, places[left] + grid.separation(left, vertex) - offset) if left >= 0 else low
            high = min(high, places[right] - grid.separation(vertex, right) - offset) if right >= 0 else high
        if low <= high:
            place = min(max(_column_wish(grid, column, places), low), high)
            for vertex, offset in column:
                places[vertex] = place + offset


def _column_wish(grid: Grid, column: Sequence[tuple[int, float]], places: Sequence[float]) -> float:
    total, count = 0.0, 0
    for vertex, offset in column:
        if vertex < grid.first_dummy:
            total += places[vertex] - offset
            count += 1
            continue
        for link in grid.up[vertex] + grid.down[vertex]:
            other = link.upper if link.lower == vertex else link.lower
            if other < grid.first_dummy:
                total += places[other] + (link.upper_x if link.lower == vertex else link.lower_x)
                count += 1
    return total / count


def _rounded(number: float) -> int:
    return floor(number + 0.5)


def _assembled(grid: Grid, places: list[float], crossings: int) -> Arranged:
    """The box around all of it, in whole numbers."""
    level = grid.level
    title_width, title_height = level.title
    left = min((places[v] - grid.widths[v] / 2 for v in range(len(places))), default=0.0)
    shift = PADDING - left
    if level.ports_in and title_width:  # lines come in beside the title, not through it
        first = min(places[grid.first_in + port] for port in range(level.ports_in))
        shift = max(shift, title_width + LINE_GAP - first)
    middles = [place + shift for place in places]
    right = max((middles[v] + grid.widths[v] / 2 for v in range(len(places))), default=0.0)
    width = max(_rounded(right) + PADDING, title_width + PADDING)
    tops, bottoms, height = _bands(grid, middles, title_height)

    positions = []
    for vertex, item in enumerate(level.items):
        rank = grid.ranks[vertex]
        head, tail = MARK_HEIGHT * item.heads, MARK_HEIGHT * item.tails
        free = bottoms[rank] - tops[rank] - head - item.height - tail
        positions.append((_rounded(middles[vertex] - item.width / 2), tops[rank] + head + free // 2))

    def upper_end(number: int, net: Net) -> Station:
        source = grid.source(net)
        if net.source < 0:
            return Station(_rounded(middles[source]), 0, title_height)
        x, y = positions[source]
        x = x + net.x if net.x >= 0 else _rounded(middles[source] + grid.starts[number][0].upper_x)
        return Station(x, y + level.items[source].height, bottoms[grid.ranks[source]])

    def lower_end(target: NetTarget, link: Link) -> Station:
        if target.item < 0:
            return Station(_rounded(middles[link.lower]), height, height)
        x, y = positions[target.item]
        x = x + target.x if target.x >= 0 else _rounded(middles[link.lower] + link.lower_x)
        return Station(x, tops[grid.ranks[link.lower]], y)

    routes = []
    for number, net in enumerate(level.nets):
        start = upper_end(number, net)
        passed = [
            Station(_rounded(middles[dummy]), tops[grid.ranks[dummy]], bottoms[grid.ranks[dummy]])
            for dummy in grid.chains[number]
        ]
        first = grid.ranks[grid.source(net)] + 1
        routes.append(
            [
                [start, *passed[: grid.ranks[link.lower] - first], lower_end(target, link)]
                for target, link in zip(net.targets, grid.ends[number], strict=True)
            ]
        )
    ports_in = [_rounded(middles[grid.first_in + port]) for port in range(level.ports_in)]
    ports_out = [_rounded(middles[grid.first_out + port]) for port in range(level.ports_out)]
    return Arranged(positions, width, height, ports_in, ports_out, routes, grid.heads, grid.tails, crossings)


def _bands(grid: Grid, middles: Sequence[float], title_height: int) -> tuple[list[int], list[int], int]:
    """Upper and lower ends of the ranks, and the height of the box; ranks that edges bend far between stand apart."""
    level = grid.level
    heights = [0] * len(grid.layers)
    for vertex, item in enumerate(level.items):
        marks = MARK_HEIGHT * (item.heads + item.tails)
        heights[grid.ranks[vertex]] = max(heights[grid.ranks[vertex]], item.height + marks)
    tops, bottoms = [], []
    y = 0
    for rank, height in enumerate(heights):
        is_port = (rank == 0 and level.ports_in > 0) or (rank == len(heights) - 1 and level.ports_out > 0)
        if rank:
            bend = 0.0
            for link in grid.arriving[rank]:
                distance = middles[link.lower] + link.lower_x - middles[link.upper] - link.upper_x
                bend = max(bend, abs(distance))
            y += min(RANK_GAP + _rounded(bend / 10), MAX_RANK_GAP)
        elif not is_port:
            y = title_height + (0 if title_height else PADDING)
        tops.append(y)
        y += height if not is_port else title_height if rank == 0 else 0
        bottoms.append(y)
    if not heights:
        return tops, bottoms, title_height + PADDING
    return tops, bottoms, y if level.ports_out else y + PADDING
