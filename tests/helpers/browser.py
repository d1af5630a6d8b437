"""A real browser that opens pages, without a driver: headless Chromium, which prints the document or takes a picture.

    opened = open_page(path, "return document.title")
    assert opened.result == "..." and not opened.problems

The script is appended to a copy of the page, and what it returns stands in an element of the document, which Chromium
prints. Errors, what the page's policy refuses, and requests are problems, whoever causes them. Where there is no
browser the tests are skipped, and fail where nothing may be skipped (programs.py).
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import tempfile
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.programs import program

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions")
SECONDS = 240

WATCH = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(String(event.message)));
addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => problems.push(`${event.violatedDirective} ${event.blockedURI}`));
</script>"""

ASK = """<script>
addEventListener("load", async () => {
  const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
  const press = (key, target) => (target || document.activeElement || document.body).dispatchEvent(
    new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const all = (selector) => [...document.querySelectorAll(selector)];
  let result = null;
  await pause(50);
  try {
    result = await (async () => { SCRIPT })();
  } catch (error) {
    problems.push(String(error.stack || error));
  }
  for (const entry of performance.getEntriesByType("resource")) problems.push(`request ${entry.name}`);
  const answer = document.createElement("pre");
  answer.id = "answer-to-the-test";
  answer.textContent = encodeURIComponent(JSON.stringify({ result: result === undefined ? null : result, problems }));
  document.body.append(answer);
});
</script>"""


@dataclass(frozen=True)
class Opened:
    """What a script returned in a page, and what went wrong there."""

    result: Any
    problems: list[str]


def open_page(page: Path, script: str = "", *, hash: str = "", size: tuple[int, int] = (1280, 900)) -> Opened:
    """Open a page, run the body of an async function in it, and return what that returns.

    The body may use ``pause(ms)``, ``press(key)`` and ``all(selector)``.
    """
    text = page.read_text(encoding="utf-8")
    assert text.count("<head>") == 1 and text.count("</body>") >= 1
    text = text.replace("<head>", "<head>" + WATCH, 1)
    front, _, back = text.rpartition("</body>")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        copy.write_text(front + ASK.replace("SCRIPT", script) + "</body>" + back, encoding="utf-8")
        document = document_of(copy, hash=hash, size=size)
    match = re.search(r'<pre id="answer-to-the-test">([^<]*)</pre>', document)
    assert match is not None, f"the page never came to its end:\n{document[-2000:]}"
    return Opened(**json.loads(urllib.parse.unquote(match[1])))


def document_of(page: Path, *, hash: str = "", size: tuple[int, int] = (1280, 800)) -> str:
    """The document of a page after its scripts ran."""
    return _run_browser(page, hash, size, "--dump-dom")


def screenshot(page: Path, picture: Path, *, hash: str = "", size: tuple[int, int] = (1280, 900)) -> None:
    """Take a picture of a page."""
    _run_browser(page, hash, size, f"--screenshot={picture}")


def json_in(document: str, element: str) -> Any:
    """The JSON that a page wrote into an element."""
    match = re.search(rf'<pre id="{element}">(.*?)</pre>', document, re.DOTALL)
    assert match, f"the page did not write #{element}"
    return json.loads(html.unescape(match[1]))


def _run_browser(page: Path, hash: str, size: tuple[int, int], *options: str) -> str:
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *(program(*NAMES), *OPTIONS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"),
            *("--virtual-time-budget=20000", *options),
            f"{page.resolve().as_uri()}{'#' + hash.removeprefix('#') if hash else ''}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout
