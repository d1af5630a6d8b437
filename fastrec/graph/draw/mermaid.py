"""A drawing as Mermaid, which GitHub and many note books show as a picture.

text = mermaid_text(drawing)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from fastrec._errors import DrawingError
from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.rules import BACKWARD, Style
from fastrec.graph.draw.view import DrawingView, ViewBox, ViewEdge, ViewNode, view_of

MAX_EDGES = 500
MAX_LETTERS = 50_000
"""What Mermaid draws as it is delivered; it shows an error in place of anything larger."""

DIRECTIONS = {"down": "TD", "up": "BT", "right": "LR", "left": "RL"}

# How Mermaid encloses the text of each shape: it has no ellipse, and of boxes with edges one with a double side.
SHAPES = {"ellipse": ("([", "])"), "box": ("[", "]"), "box3d": ("[[", "]]")}


def mermaid_text(drawing: Drawing) -> str:
    """The drawing as a Mermaid flowchart.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> print(mermaid_text(log_forward_pass(torch.nn.ReLU(), torch.ones(2)).drawing()).splitlines()[4])
        n0(["input_1<br/>2 (8 B)"]):::s0

    Raises DrawingError for a drawing that is too large for Mermaid.
    """
    view = view_of(drawing)
    text = "\n".join(_lines(drawing, view)) + "\n"
    if len(view.edges) > MAX_EDGES or len(text) > MAX_LETTERS:
        raise DrawingError(
            f"Mermaid draws at most {MAX_EDGES} edges and {MAX_LETTERS:,} letters, and this drawing has "
            f"{len(view.edges):,} edges and {len(text):,} letters; draw less (vis_nesting_depth=1, fold_repeats=True, "
            "module='...', vis_mode='rolled'), or take format='svg'"
        )
    return text


def _lines(drawing: Drawing, view: DrawingView) -> Iterator[str]:
    yield "---"
    yield f"title: {_quoted(', '.join(drawing.caption))}"
    yield "---"
    yield f"flowchart {DIRECTIONS[drawing.options.direction]}"
    nodes: dict[str, list[ViewNode]] = defaultdict(list)
    boxes: dict[str, list[ViewBox]] = defaultdict(list)
    for node in view.nodes:
        nodes[node.box].append(node)
    for box in view.boxes:
        boxes[box.box].append(box)
    names = {node.id: f"n{number}" for number, node in enumerate(view.nodes)}
    classes = {style: f"s{number}" for number, style in enumerate(dict.fromkeys(node.style for node in view.nodes))}

    def contents(frame: str, indent: str) -> Iterator[str]:
        for node in nodes.get(frame, ()):
            before, after = SHAPES[node.style.shape]
            yield f"{indent}{names[node.id]}{before}{_text(node.lines)}{after}:::{classes[node.style]}"
        for box in boxes.get(frame, ()):
            yield f"{indent}subgraph b{view.boxes.index(box)}[{_text(box.title)}]"
            yield from contents(box.id, indent + "    ")
            yield f"{indent}end"

    yield from contents("", "    ")
    yield from (f"    {_edge(edge, names)}" for edge in view.edges)
    yield from (f"    classDef {name} {_class(style)}" for style, name in classes.items())
    backward = [str(number) for number, edge in enumerate(view.edges) if edge.kind == "backward"]
    if backward:
        yield f"    linkStyle {','.join(backward)} stroke:{BACKWARD}"


def _edge(edge: ViewEdge, names: dict[str, str]) -> str:
    arrow = "-.->" if edge.dashed else "-->"
    texts = [*edge.tail, *edge.head]
    label = f"|{_text(texts)}|" if texts else ""
    return f"{names[edge.source]} {arrow}{label} {names[edge.target]}"


def _class(style: Style) -> str:
    dash = ",stroke-dasharray:4 3" if style.dashed else ""
    return f"fill:{style.fill},stroke:{style.line},color:{style.font}{dash}"


def _text(lines: Iterable[str]) -> str:
    return '"' + "<br/>".join(map(_escaped, lines)) + '"'


def _escaped(line: str) -> str:
    """A line in which nothing has a meaning to Mermaid."""
    return "".join(letter if letter.isalnum() or letter in " _.,:()-" else f"#{ord(letter)};" for letter in line)


def _quoted(text: str) -> str:
    """A text as YAML writes it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
