"""The page of a graph: one file that opens from disk, in which the reader opens, searches and measures.

    html = page_of(history.drawing())
    write_page(html, "model.html")

The page holds its data (data.py), its styles and its scripts, which lie readable in `fastrec/_web/`, and loads nothing.
A policy in its head forbids it to: `default-src 'none'`. Names of models, modules and arguments are data and never
markup: `<` is written `\\u003c`, so that no name can end the script element that it stands in.
"""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from fastrec._errors import OptionError, RecordingExistsError
from fastrec.graph.draw.data import page_data
from fastrec.graph.draw.description import Drawing

MAX_OPERATIONS = 20_000
"""A page of more nodes would be slow to open and to lay out."""

SCRIPTS = (
    *("metrics.js", "layers.js", "layout.js", "graph.js", "view.js", "svg.js", "scene.js", "colours.js", "paint.js"),
    *("search.js", "elements.js", "panel.js", "furniture.js", "state.js", "page.js", "controls.js", "checks.js"),
    "start.js",
)


def page_of(drawing: Drawing) -> str:
    """The page of a drawing, as the text of a file.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> html = page_of(log_forward_pass(torch.nn.Linear(4, 2), torch.ones(1, 4)).drawing())
    >>> html[:15], "src=" in html
    ('<!doctype html>', False)

    Arguments:
        drawing: what ``history.drawing()`` returns; all of its modules are on the page, whatever depth it asks for.

    Raises OptionError for more than 20,000 nodes.
    """
    count = len(drawing.nodes)
    if count > MAX_OPERATIONS:
        smaller = "" if drawing.options.vis_mode == "rolled" else "give vis_mode='rolled', which draws each layer once, or "
        raise OptionError(
            f"the page would have {count:,} operations, and can have {MAX_OPERATIONS:,}; {smaller}"
            "give module='...' to draw one module alone"
        )
    script = "\n".join([f"const WIDTHS = {_source('widths.json').strip()};", *map(_source, SCRIPTS)])
    parts = {
        "title": escape(drawing.title).encode("ascii", "xmlcharrefreplace").decode(),
        "style": _source("page.css"),
        "data": _embedded(page_data(drawing)),
        "script": script,
    }
    return "".join(parts.get(piece, piece) for piece in _source("page.html").split("%"))


def write_page(html: str, path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Write a page to a file that is not there yet, or over one.

    Raises RecordingExistsError where it is there and ``overwrite`` is not given.
    """
    try:
        with Path(path).open("w" if overwrite else "x", encoding="utf-8", newline="\n") as file:
            file.write(html)
    except FileExistsError as error:
        raise RecordingExistsError(f"{path} exists; give another path, or overwrite=True to write over it") from error


def _source(name: str) -> str:
    return resources.files("fastrec._web").joinpath(name).read_text(encoding="utf-8")


def _embedded(data: Any) -> str:
    """JSON that can stand in a script element, whatever is in it."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
