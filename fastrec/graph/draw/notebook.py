"""What a notebook shows of a graph: a picture of as much of it as is seen at a glance.

    notebook_html(history.drawing(), "history.to_html('model.html') writes a page")

Jupyter, JupyterLab, VS Code, Colab and marimo all show what ``_repr_html_`` returns, but a notebook that is not
trusted, and one that is read on a web site, runs no script and drops styles and inline SVG. What all of them show is an
image with its data in its address, so that is what this is.
"""

from __future__ import annotations

from base64 import b64encode
from html import escape

from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.svg import svg_of
from fastrec.graph.draw.view import Opening, opening_at, view_of

FEW_NODES = 40
"""With fewer nodes than this in view, the next depth is opened, too, as long as that makes no more than..."""

MANY_NODES = 120

MAX_NODES = 400
"""A picture of more nodes says nothing at a glance."""


def first_opening(drawing: Drawing) -> Opening:
    """What is open in a notebook, and when a page opens: repeats folded, and as deep as few nodes are seen."""
    opening = opening_at(drawing, 1, folded=True)
    for depth in range(2, max(drawing.depths, default=0) + 2):
        if len(view_of(drawing, opening).nodes) >= FEW_NODES:
            break
        deeper = opening_at(drawing, depth, folded=True)
        if len(view_of(drawing, deeper).nodes) > MANY_NODES:
            break
        opening = deeper
    return opening


def notebook_html(drawing: Drawing, hint: str) -> str | None:
    """The picture of a drawing for a notebook, and a line below it; None where it would show too much.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> html = notebook_html(log_forward_pass(torch.nn.Linear(4, 2), torch.ones(1, 4)).drawing(), "...")
    >>> html.count("<img"), "<script" in html
    (1, False)
    """
    opening = first_opening(drawing)
    if len(view_of(drawing, opening).nodes) > MAX_NODES:
        return None
    picture = b64encode(svg_of(drawing, opening).encode()).decode()
    caption = escape(", ".join(drawing.caption))
    return (
        f'<div style="max-height:640px;overflow:auto"><img alt="{caption}" src="data:image/svg+xml;base64,{picture}">'
        f"</div><div><small>{escape(hint)}</small></div>"
    )
