"""One HTML document that holds all it needs: styles, scripts and data, and asks for nothing from anywhere.

>>> script = "p.textContent = data.textContent"
>>> text = document("A page", body="<p id='p'></p>", styles=[], scripts=[script], data={"a": "</script>"})
>>> "</script>" in text.partition('id="data">')[2].partition("</script>")[0]
False
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

# A page may use what it holds, and nothing else: no request leaves it, whatever names its data has.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


def web_file(path: str) -> str:
    """The text of one of the package's scripts or styles."""
    return (files("fastrec._web") / path).read_text(encoding="utf-8")


def json_in_html(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends that, or a line of it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def document(title: str, *, body: str, styles: Sequence[str], scripts: Sequence[str], data: Any) -> str:
    """A whole HTML document.

    Arguments:
        title: what the browser shows above it.
        body: HTML.
        styles: style sheets.
        scripts: scripts, which run in this order, each in the scope of the ones before.
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
            f"<title>{escape(title)}</title>",
            *(f"<style>\n{style}\n</style>" for style in styles),
            "</head>",
            "<body>",
            body,
            f'<script type="application/json" id="data">{json_in_html(data)}</script>',
            *(f"<script>\n{script}\n</script>" for script in scripts),
            "</body>",
            "</html>",
            "",
        ]
    )
