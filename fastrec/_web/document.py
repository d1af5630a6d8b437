"""Pages that open from disk: one HTML file that holds its styles, scripts and data, and loads nothing.

    def make():
        return document("A page", body=asset("report/body.html"), styles=[...], scripts=[...], data={"sites": []})

    write_page(make, "page.html")  # refuses to write over a file

A policy in the head forbids the page to load or send anything. Names of models, modules and runs are data and never
markup, so no name can end the script element that it stands in. What a page is made of lies readable in this folder:
`graph/`, `report/`, and what others wrote in `vendor/`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from os import PathLike
from typing import Any

from fastrec._errors import RecordingExistsError, RecordingFileError

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)

# JSON may have these in strings, where a script element or a line of a script must not.
_ENDS = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def asset(name: str) -> str:
    """The text of a file that comes with the package for its pages."""
    return resources.files("fastrec").joinpath("_web").joinpath(name).read_text(encoding="utf-8")


def document(title: str, *, body: str, styles: Sequence[str], scripts: Sequence[str], data: Any) -> str:
    """The text of a page.

    >>> script = "p.textContent = data.textContent"
    >>> page = document("A <page>", body="<p id='p'></p>", styles=[], scripts=[script], data={"a": "</script>"})
    >>> page.count("</script>"), "<title>A &lt;page&gt;</title>" in page
    (2, True)

    Arguments:
        title: what the browser shows above it.
        body: HTML.
        styles: style sheets.
        scripts: scripts, which run in this order, each in an element of its own.
        data: what the scripts find as JSON in the element ``data``.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="generator" content="fastrec">',
            f"<title>{escape(title).encode('ascii', 'xmlcharrefreplace').decode()}</title>",
            *(f"<style>\n{style.strip()}\n</style>" for style in styles),
            "</head>",
            "<body>",
            body.strip(),
            f'<script type="application/json" id="data">{json_in_html(data)}</script>',
            *(f"<script>\n{script.strip()}\n</script>" for script in scripts),
            "</body>",
            "</html>",
            "",
        ]
    )


def json_in_html(data: Any) -> str:
    r"""JSON that can stand in a script element, whatever is in it.

    >>> json_in_html({"</script>": [1, None]})
    '{"\\u003c/script\\u003e":[1,null]}'

    Halves of characters, which no file can hold and which make Chromium crash, become U+FFFD.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _ENDS.sub(lambda end: f"\\u{ord(end[0]):04x}" if not "\ud800" <= end[0] <= "\udfff" else "\ufffd", text)


def check_free(path: str | PathLike[str], *, overwrite: bool) -> None:
    """Raise RecordingExistsError where there is a file that is not to be replaced."""
    if not overwrite and os.path.lexists(path):
        raise RecordingExistsError(
            f"{os.fspath(path)!r} exists; give another path, or overwrite=True to replace the file"
        )


def write_page(make: Callable[[], str], path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Make a page and write it to a file.

    Raises RecordingExistsError, before anything is made, where there is a file and ``overwrite`` is not given, and
    RecordingFileError where it can't be written.
    """
    check_free(path, overwrite=overwrite)
    page = make()
    try:
        with open(path, "w" if overwrite else "x", encoding="utf-8", newline="\n") as file:
            file.write(page)
    except FileExistsError:
        check_free(path, overwrite=False)  # somebody else was quicker
    except OSError as error:
        raise RecordingFileError(f"{os.fspath(path)!r} can't be written: {error.strerror or error}") from error
