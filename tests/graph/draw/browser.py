"""A real browser that opens pages, without a driver: what a page found out stands in an element of its document.

`chromium --headless --dump-dom` prints the document as it is after the page's scripts ran. Where there is no browser
the tests are skipped, and fail where nothing may be skipped (tests/helpers/programs.py).
"""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.helpers.programs import program

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions")
SECONDS = 240


def browser() -> str:
    """The program; skips the test, or fails it, where there is none."""
    return program(*NAMES)


def document_of(page: Path, profile: Path, hash: str = "") -> str:
    """The document of a page after its scripts ran."""
    command = [
        *(browser(), *OPTIONS, f"--user-data-dir={profile}", "--window-size=1280,800"),
        *("--virtual-time-budget=20000", "--dump-dom", page.as_uri() + hash),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def json_in(document: str, element: str) -> Any:
    """The JSON that a page wrote into an element."""
    found = re.search(rf'<pre id="{element}">(.*?)</pre>', document, re.DOTALL)
    assert found, f"the page did not write #{element}"
    return json.loads(html.unescape(found[1]))


def checks_of(page: Path, profile: Path) -> Any:
    """What a page of a graph finds out about itself."""
    return json_in(document_of(page, profile, "#test"), "checks")
