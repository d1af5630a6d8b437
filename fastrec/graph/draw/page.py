"""The page of a graph: one file that opens from disk, in which the reader opens, searches and measures.

    html = page_of(history.drawing())
    write_drawing(history.drawing, "model.html")     # refuses to write over a file

The page is a document of `fastrec/_web/document.py` with the data of data.py, and with the styles and scripts that lie
readable in `fastrec/_web/graph/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike

from fastrec._errors import OptionError
from fastrec._web.document import asset, document, write_page
from fastrec.graph.draw.data import page_data
from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.svg import check_direction

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
    return document(
        drawing.title,
        body=asset("graph/body.html"),
        styles=[asset("graph/page.css")],
        scripts=[f'"use strict";\n{scripts(SCRIPTS)}'],
        data=data,
    )


def write_drawing(
    make: Callable[[], Drawing],
    path: str | PathLike[str],
    *,
    validated: bool | None = None,
    overwrite: bool = False,
) -> None:
    """Make a drawing and write its page to a file.

    Raises RecordingExistsError, before anything is drawn, where there is a file and ``overwrite`` is not given,
    RecordingFileError where it can't be written, and what ``page_of`` raises.
    """
    write_page(lambda: page_of(make(), validated=validated), path, overwrite=overwrite)


def scripts(names: Iterable[str]) -> str:
    """Some of the page's scripts in one, behind the table of widths that they measure texts with."""
    return "\n".join([f"const WIDTHS = {asset('widths.json').strip()};", *(asset(f"graph/{name}") for name in names)])
