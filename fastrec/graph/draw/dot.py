"""A drawing as DOT, the language of Graphviz.

    text = dot_text(drawing)

Each line of text, colour and dash comes from the view; here is only how DOT writes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.rules import BACKWARD, Style
from fastrec.graph.draw.view import DrawingView, ViewBox, ViewEdge, ViewNode, view_of

RANKDIR = {"down": "TB", "up": "BT", "right": "LR", "left": "RL"}


def dot_text(drawing: Drawing, view: DrawingView | None = None) -> str:
    """The whole drawing, or what is seen of it in a view, as DOT.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> print(dot_text(log_forward_pass(torch.nn.ReLU(), torch.ones(2)).drawing()).splitlines()[-2].strip())
    "relu_1_1" -> "output_1"
    """
    view = view or view_of(drawing)
    return "\n".join(_lines(drawing, view, view.edges))


def _lines(drawing: Drawing, view: DrawingView, edges: Iterable[ViewEdge]) -> Iterator[str]:
    rankdir = RANKDIR[drawing.options.direction]
    caption = html_lines(drawing.caption, align="left")
    yield "digraph {"
    yield f'  graph [rankdir={rankdir} labelloc=t labeljust=l fontname="Helvetica" label={caption}]'
    yield '  node [style="filled" fillcolor="#FFFFFF" fontname="Helvetica" fontsize=11 margin="0.1,0.05"]'
    yield '  edge [fontname="Helvetica" fontsize=10]'
    nodes: dict[str, list[ViewNode]] = defaultdict(list)
    boxes: dict[str, list[ViewBox]] = defaultdict(list)
    for node in view.nodes:
        nodes[node.box].append(node)
    for box in view.boxes:
        boxes[box.box].append(box)
    yield from _contents("", nodes, boxes, "  ")
    for edge in edges:
        yield f"  {edge_line(edge)}"
    yield "}"


def _contents(
    frame: str, nodes: dict[str, list[ViewNode]], boxes: dict[str, list[ViewBox]], indent: str
) -> Iterator[str]:
    for node in nodes.get(frame, ()):
        yield f"{indent}{_node_line(node)}"
    for box in boxes.get(frame, ()):
        style = "dashed" if box.kind == "fold" else "solid"
        yield f"{indent}subgraph {quoted(f'cluster {box.id}')} {{"
        yield f"{indent}  label={html_lines(box.title)} style={style} labelloc=t labeljust=c margin=12"
        yield from _contents(box.id, nodes, boxes, indent + "  ")
        yield f"{indent}}}"


def _node_line(node: ViewNode) -> str:
    style = node.style
    fill = f"{style.fill}:{style.fill_end}" if style.fill_end else style.fill
    return (
        f"{quoted(node.id)} [label={html_lines(node.lines)} shape={style.shape} style={_drawn(style)} "
        f'fillcolor="{fill}" color="{style.line}" fontcolor="{style.font}"]'
    )


def _drawn(style: Style) -> str:
    return '"filled,dashed"' if style.dashed else '"filled"'


def edge_line(edge: ViewEdge) -> str:
    """An edge as a line of DOT."""
    attributes = list(_edge_attributes(edge))
    arrow = f"{quoted(edge.source)} -> {quoted(edge.target)}"
    return f"{arrow} [{' '.join(attributes)}]" if attributes else arrow


def _edge_attributes(edge: ViewEdge) -> Iterator[str]:
    # Graphviz keeps a place free for a label, but not for the texts at the ends.
    middle = [text for text in edge.head if not text.startswith("In ")]
    incoming = [text for text in edge.head if text.startswith("In ")]
    if middle:
        yield f"label={html_lines([f'  {text} ' for text in middle], bold=[text == 'IF' for text in middle])}"
    if incoming:
        yield f"headlabel={html_lines(incoming, bold=())}"
    if edge.tail:
        yield f"taillabel={html_lines(edge.tail, bold=())}"
    if incoming or edge.tail:
        yield "labeldistance=2.4 labelangle=35 minlen=2"  # off the arrow and off the node
    if edge.kind == "backward":
        yield f'color="{BACKWARD}" constraint=false'
    elif edge.dashed:
        yield "style=dashed"


def quoted(name: str) -> str:
    """A name as DOT writes it."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def html_lines(lines: Sequence[str], *, bold: Sequence[bool] = (True,), align: str = "") -> str:
    """Lines of text as an HTML-like label, the first one bold."""
    end = f'<BR ALIGN="{align.upper()}"/>' if align else "<BR/>"
    shown = []
    for position, line in enumerate(lines):
        text = escape(_printable(line), quote=False).replace("  ", "&#160;&#160;") or " "
        shown.append(f"<B>{text}</B>" if position < len(bold) and bold[position] else text)
    return f"<{end.join(shown)}{end if align else ''}>"


def _printable(text: str) -> str:
    """A text in which everything has a shape: Graphviz ends a line at some characters that have none."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
