"""The page of a graph: one file that opens from disk, in which the reader opens, searches and measures.

    html = page_of(history.drawing())
    write_page(lambda: html, "model.html")     # refuses to write over a file

The page holds its data (data.py), its styles and its scripts, which lie readable in `fastrec/_web/`, and loads nothing.
A policy in its head forbids it to: `default-src 'none'`. Names of models, modules and arguments are data and never
markup: `<` is written `\\u003c`, so that no name can end the script element that it stands in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from html import escape
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from fastrec._errors import OptionError, RecordingFileError
from fastrec.graph.draw.data import page_data
from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.picture import check_free
from fastrec.graph.draw.svg import check_direction
from fastrec.graph.draw.text import xml_characters

MAX_OPERATIONS = 20_000
"""A page of more nodes would be slow to open and to lay out."""

SCRIPTS = (
    *("metrics.js", "layers.js", "layout.js", "graph.js", "view.js", "svg.js", "scene.js", "colours.js", "paint.js"),
    *("search.js", "elements.js", "panel.js", "furniture.js", "state.js", "page.js", "controls.js", "checks.js"),
    "start.js",
)


def page_of(drawing: Drawing, *, validated: bool | None = None) -> str:
    """The page of a drawing, as the text of a file.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> html = page_of(log_forward_pass(torch.nn.Linear(4, 2), torch.ones(1, 4)).drawing())
    >>> html[:15], "src=" in html
    ('<!doctype html>', False)

    Arguments:
        drawing: what ``history.drawing()`` returns; all of its modules are on the page, whatever depth it asks for.
        validated: whether what was saved is right, which a badge says; None where nobody looked.

    Raises OptionError for more than 20,000 nodes, and for a drawing that does not point down.
    """
    check_direction(drawing, "a page", "draw(format='graphviz')")
    count = len(drawing.nodes)
    if count > MAX_OPERATIONS:
        smaller = "vis_mode='rolled', which shows each layer once, or " if drawing.options.vis_mode != "rolled" else ""
        raise OptionError(
            f"the page would have {count:,} operations, and has room for {MAX_OPERATIONS:,}; give {smaller}"
            "module='...' with the address of one module"
        )
    data = page_data(drawing)
    if validated is not None:
        data["about"]["validated"] = validated
    parts = {
        "title": escape(drawing.title).encode("ascii", "xmlcharrefreplace").decode(),
        "style": asset("page.css"),
        "data": _embedded(data),
        "script": scripts(SCRIPTS),
    }
    return "".join(parts.get(piece, piece) for piece in asset("page.html").split("%"))


def write_page(make: Callable[[], str], path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Make a page and write it to a file.

    Raises RecordingExistsError, before anything is made, where there is a file and ``overwrite`` is not given, and
    RecordingFileError where it can't be written.
    """
    target = Path(path)
    check_free(target, overwrite=overwrite)
    html = make()
    try:
        with target.open("w" if overwrite else "x", encoding="utf-8", newline="\n") as file:
            file.write(html)
    except FileExistsError:
        check_free(target, overwrite=False)  # somebody else was quicker
    except OSError as error:
        raise RecordingFileError(f"{target} can't be written: {error.strerror or error}") from error


def asset(name: str) -> str:
    """The text of a file that comes with the package for its pages."""
    return resources.files("fastrec").joinpath("_web").joinpath(name).read_text(encoding="utf-8")


def scripts(names: Iterable[str]) -> str:
    """Some of the package's scripts in one, behind the table of widths that they measure texts with."""
    return "\n".join([f"const WIDTHS = {asset('widths.json').strip()};", *map(asset, names)])


def _embedded(data: Any) -> str:
    """JSON that can stand in a script element, whatever is in it."""
    text = xml_characters(json.dumps(data, separators=(",", ":"), ensure_ascii=False))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
