"""A picture of a drawing as SVG text, with nothing installed.

    svg = svg_of(history.drawing(vis_nesting_depth=2))
    Path("model.svg").write_text(svg)

Nodes and boxes stand where layout.py puts them. The colours of nodes are those of rules.py; what it does not say (the
tint of boxes, the grey of edges) is said here. `fastrec/_web/graph/svg.js` writes the same text for the button of the
page, character by character, which a test holds. Edges that carry the same value share lines, each of which is drawn
once. Far edges are faint arcs below the nodes. Tooltips name the ends of edges and hold what was shortened in nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from fastrec._errors import OptionError
from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.diagram import PlacedView, mark_text, placed_view
from fastrec.graph.draw.layout import EdgeRoute, Rectangle
from fastrec.graph.draw.metrics import BOX_TITLE, MARK, TEXT, TITLE, TITLE_PADDING, shortened, text_width
from fastrec.graph.draw.rules import BACKWARD, BLACK, WHITE
from fastrec.graph.draw.view import Opening, ViewBox, ViewEdge, ViewNode, view_of

INK, MUTED, LINE = "#0f172a", "#64748b", "#475569"
FONTS = "Inter,system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif"
MARGIN = 16
CAPTION_LINE = 17
CORNER, ROUND_CORNER, BOX_CORNER = 4, 22, 9
SHEET = 3  # how far the sheets below a closed module and a fold stand out
ARROW_LENGTH, ARROW_WIDTH = 7, 7
MAX_CLEAR_ARCS = 12  # with more far edges than this, they are drawn fainter

STYLES = (
    f"text{{font-family:{FONTS};font-size:{TEXT.size}px;fill:{MUTED}}}"
    f".t{{font-size:{TITLE.size}px;font-weight:600;fill:{INK}}}"
    f".b{{font-size:{BOX_TITLE.size}px;font-weight:600;fill:#334155}}"
    f".k{{font-size:{MARK.size}px;fill:{LINE}}}"
    f".i{{font-weight:700;fill:{INK}}}"
    f".h{{font-size:17px;font-weight:600;fill:{INK}}}"
    ".c{text-anchor:middle}"
    ".u{fill:#1e293b}"
    ".f{fill:#0f172a;fill-opacity:.025;stroke:#cbd5e1}"
    f".e{{fill:none;stroke:{MUTED};stroke-width:1.2}}"
    f".g{{fill:none;stroke:{BACKWARD};stroke-width:1.6}}"
    ".r{fill:none;stroke:#94a3b8}"
    ".s{stroke-opacity:.4;fill-opacity:.4}"
    ".d{stroke-dasharray:4 3}"
)


def svg_of(drawing: Drawing, opening: Opening | None = None) -> str:
    """The picture of a drawing.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> svg = svg_of(log_forward_pass(torch.nn.Linear(4, 2), torch.ones(1, 4)).drawing())
    >>> svg.startswith("<svg"), svg.count('class="n"')
    (True, 3)

    Arguments:
        drawing: what ``history.drawing()`` returns.
        opening: which modules are open; None as the options of the drawing say.

    Returns the text of a file. Raises OptionError for a drawing that does not point down.
    """
    check_direction(drawing, "an SVG without Graphviz", "format='graphviz'")
    placed = placed_view(view_of(drawing, opening))
    layout = placed.layout
    header = [text_width(line, TITLE) * (2 if number == 0 else 1) for number, line in enumerate(drawing.caption)]
    width = max([layout.width, *map(_reach, layout.routes), *header]) + 2 * MARGIN
    top = MARGIN + CAPTION_LINE * len(drawing.caption) + (MARGIN if drawing.caption else 0)
    height = top + layout.height + MARGIN
    title = _text(drawing.title)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{title}">',
        f"<title>{title}</title><style>{STYLES}</style>",
        *_gradients(placed.view.nodes),
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for number, line in enumerate(drawing.caption, 1):
        look = "h" if number == 1 else ""
        lines.append(f'<text x="{MARGIN}" y="{MARGIN + CAPTION_LINE * number}" class="{look}">{_text(line)}</text>')
    lines.append(f'<g transform="translate({MARGIN} {top})">')
    lines += (_box(box, place) for box, place in zip(placed.view.boxes, layout.boxes[1:], strict=True))
    lines += _edges(placed)
    lines += (_node(node, place) for node, place in zip(placed.view.nodes, layout.nodes, strict=True))
    return "\n".join([*lines, "</g>", "</svg>", ""])


def check_direction(drawing: Drawing, what: str, remedy: str) -> None:
    """Raise OptionError for a drawing that does not point down, as all layouts here do."""
    if drawing.options.direction != "down":
        raise OptionError(
            f"direction={drawing.options.direction!r}: {what} points down; leave it out, or give {remedy}"
        )


def _text(text: str) -> str:
    """Text that is safe in SVG."""
    return escape(text)


def _gradients(nodes: Sequence[ViewNode]) -> Iterator[str]:
    mixed = dict.fromkeys((node.style.fill, node.style.fill_end) for node in nodes if node.style.fill_end)
    for start, end in mixed:
        yield (
            f'<defs><linearGradient id="{_gradient(start, end)}"><stop offset="0" stop-color="{start}"/>'
            f'<stop offset="1" stop-color="{end}"/></linearGradient></defs>'
        )


def _gradient(start: str, end: str) -> str:
    return f"mixed-{start[1:]}-{end[1:]}"


def _box(box: ViewBox, place: Rectangle) -> str:
    frame = f'<rect x="{place.x}" y="{place.y}" width="{place.width}" height="{place.height}" rx="{BOX_CORNER}"'
    parts = [f'<g class="x">{frame} class="f"/>']
    y = place.y + TITLE_PADDING[1] - 3
    for number, line in enumerate(box.title):
        y += TEXT.line if number else BOX_TITLE.line
        look = "" if number else "b"
        parts.append(f'<text x="{place.x + TITLE_PADDING[0]}" y="{y}" class="{look}">{_text(shortened(line))}</text>')
    return "".join(parts) + "</g>"


def _node(node: ViewNode, place: Rectangle) -> str:
    style = node.style
    fill = f"url(#{_gradient(style.fill, style.fill_end)})" if style.fill_end else style.fill
    stroke = LINE if style.line == BLACK else style.line
    corner = min(place.height // 2, ROUND_CORNER) if style.shape == "ellipse" else CORNER
    look = f'rx="{corner}" fill="{fill}" stroke="{stroke}"' + (' class="d"' if style.dashed else "")
    parts = ['<g class="n"><title>' + _text("\n".join(node.lines)) + "</title>"]
    for sheet in range(sheets_below(node), -1, -1):
        x, y = place.x + SHEET * sheet, place.y + SHEET * sheet
        parts.append(f'<rect x="{x}" y="{y}" width="{place.width}" height="{place.height}" {look}/>')
    x = place.x + place.width // 2
    y = place.y + (place.height - TITLE.line - TEXT.line * (len(node.lines) - 1)) // 2 - 3
    colour = "" if style.font == BLACK else f' style="fill:{style.font}"'
    plain = "c" if style.fill == WHITE else "c u"  # light letters can't be read on a colour
    for number, line in enumerate(node.lines):
        y += TEXT.line if number else TITLE.line
        text_look = plain if number else "c t"
        parts.append(f'<text x="{x}" y="{y}" class="{text_look}"{colour}>{_text(shortened(line))}</text>')
    return "".join(parts) + "</g>"


def sheets_below(node: ViewNode) -> int:
    """A closed module lies on one more sheet, a fold on two."""
    return {"node": 0, "module": 1, "fold": 2}[node.kind]


def _edges(placed: PlacedView) -> Iterator[str]:
    view, routes = placed.view, placed.layout.routes
    names = {node.id: shortened(node.lines[0]) for node in view.nodes}
    is_faint = sum(route.kind == "far" for route in routes) > MAX_CLEAR_ARCS
    drawn: set[str] = set()
    order = sorted(range(len(routes)), key=lambda number: routes[number].kind != "far")
    for edge, route in ((view.edges[number], routes[number]) for number in order):
        look = "g" if edge.kind == "backward" else "r" if route.kind == "far" else "e"
        look += (" s" if route.kind == "far" and is_faint else "") + (" d" if edge.dashed else "")
        marks = f" ({mark_text(edge.head)})" if edge.head else ""
        title = _text(f"{names[edge.source]} → {names[edge.target]}{marks}")
        path = path_of(route, drawn, look)
        line = f'<path d="{path}" class="{look}"/>' if path else ""
        colour = BACKWARD if edge.kind == "backward" else "#94a3b8" if route.kind == "far" else MUTED
        head_look = ' class="s"' if route.kind == "far" and is_faint else ""
        head = f'<path d="{arrow_of(route)}" fill="{colour}"{head_look}/>'
        yield f'<g class="y"><title>{title}</title>{line}{head}{_marks(edge, route)}</g>'


def path_of(route: EdgeRoute, drawn: set[str], look: str) -> str:
    """The path of an edge, less the pieces that were drawn before in the same look, which are added to.

    >>> from fastrec.graph.draw.layers import Station
    >>> path_of(EdgeRoute("near", (Station(10, 0, 20), Station(30, 40, 60))), set(), "")
    'M10 0V20C10 30 30 30 30 40V60'
    """
    first, last = route.stations[0], route.stations[-1]
    if route.kind == "loop":
        x, y = first.x, first.top
        return f"M{x} {y - 6}C{x + 26} {y - 16} {x + 26} {y + 16} {x} {y + 6}"
    if route.kind == "far":
        reach = _reach(route)
        return f"M{first.x} {first.top}C{reach} {first.top} {reach} {last.top} {last.x} {last.top}"
    pieces = []
    for number, station in enumerate(route.stations):
        if number:
            x, y = route.stations[number - 1].x, route.stations[number - 1].bottom
            middle = _short((y + station.top) / 2)
            bend = f"C{x} {middle} {station.x} {middle} {station.x} {station.top}"
            pieces.append((f"M{x} {y}", f"V{station.top}" if x == station.x else bend))
        if station.bottom > station.top:
            pieces.append((f"M{station.x} {station.top}", f"V{station.bottom}"))
    path, is_down = "", False
    for start, piece in pieces:
        key = f"{look} {start}{piece}"
        is_new = key not in drawn
        if is_new:
            drawn.add(key)
            path += piece if is_down else start + piece
        is_down = is_new
    return path


def _short(number: float) -> str:
    """A multiple of a half as JavaScript writes it."""
    return str(int(number)) if number == int(number) else str(number)


def _reach(route: EdgeRoute) -> int:
    """How far to the right an edge bends, 0 where it is as wide as the layout."""
    if route.kind == "near":
        return 0
    first, last = route.stations[0], route.stations[-1]
    return max(first.x, last.x) + 30 + min(abs(last.top - first.top) // 8, 160)


def arrow_of(route: EdgeRoute) -> str:
    """The head of an arrow, as a path."""
    first, last = route.stations[0], route.stations[-1]
    if route.kind != "near":
        y = last.top + (6 if route.kind == "loop" else 0)
        return f"M{last.x} {y}l{ARROW_LENGTH} -{_short(ARROW_WIDTH / 2)}v{ARROW_WIDTH}z"
    if route.is_reversed:
        return f"M{first.x} {first.top}l-{_short(ARROW_WIDTH / 2)} {ARROW_LENGTH}h{ARROW_WIDTH}z"
    return f"M{last.x} {last.bottom}l-{_short(ARROW_WIDTH / 2)} -{ARROW_LENGTH}h{ARROW_WIDTH}z"


def _marks(edge: ViewEdge, route: EdgeRoute) -> str:
    if route.kind == "far":
        return ""  # there is no room for it; the tooltip says it
    first, last = route.stations[0], route.stations[-1]
    if route.kind == "loop":
        return _mark(edge.head, last.x + 4, last.top + 20, 1) + _mark(edge.tail, first.x + 4, first.top - 13, 1)
    upper, lower = (first.x, first.top + 12), (last.x, last.bottom - 6)
    (head, tail) = (upper, lower) if route.is_reversed else (lower, upper)
    return _mark(edge.head, *head, route.head) + _mark(edge.tail, *tail, route.tail)


def _mark(texts: tuple[str, ...], x: int, y: int, side: int) -> str:
    if not texts:
        return ""
    look = "k i" if "IF" in texts else "k"
    anchor = ' text-anchor="end"' if side < 0 else ""
    return f'<text x="{x + 5 * side}" y="{y}" class="{look}"{anchor}>{_text(mark_text(texts))}</text>'
