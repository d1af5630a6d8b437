"""Pages in a real browser: opened from disk in headless Chromium, asked by a script, and looked at as pictures.

    opened = open_page(path, "return document.title")
    assert opened.result == "..." and not opened.problems

No driver is needed: the script is appended to a copy of the page, and writes what it returns into the document, which
Chromium prints. Errors, what the page's policy refuses, and requests are problems, whoever causes them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

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
  const told = document.createElement("pre");
  told.id = "told-to-the-test";
  told.textContent = encodeURIComponent(JSON.stringify({ result: result === undefined ? null : result, problems }));
  document.body.append(told);
});
</script>"""


@dataclass(frozen=True)
class Opened:
    """What a page told: what the script returned, and what went wrong."""

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
        done = _chromium(copy, hash, size, "--dump-dom")
    told = re.search(r'<pre id="told-to-the-test">([^<]*)</pre>', done)
    assert told is not None, f"the page never came to its end:\n{done[-2000:]}"
    return Opened(**json.loads(urllib.parse.unquote(told[1])))


def screenshot(page: Path, picture: Path, *, hash: str = "", size: tuple[int, int] = (1280, 900)) -> None:
    """Take a picture of a page."""
    _chromium(page, hash, size, f"--screenshot={picture}", "--hide-scrollbars")


def _chromium(page: Path, hash: str, size: tuple[int, int], *options: str) -> str:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"),
                *(f"--window-size={size[0]},{size[1]}", "--virtual-time-budget=15000", *options),
                f"{page.resolve().as_uri()}{'#' + hash if hash else ''}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout
