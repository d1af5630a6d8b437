"""Other tools' viewers in a real browser, each served by its own code or from its own files."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from tests.helpers.browser import NAMES, OPTIONS
from tests.helpers.programs import package, program

WAITING = "setInterval(() => fetch('/api/wait'), 1000)"


def shown(url: str, profile: Path, seconds: int = 10) -> str:
    """The document that a viewer makes of a file, after some seconds of its own time."""
    command = [
        program(*NAMES),
        *OPTIONS,
        f"--user-data-dir={profile}",
        "--window-size=1280,800",
        "--enable-unsafe-swiftshader",
    ]
    command += [f"--virtual-time-budget={seconds * 1000}", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test's output is its own."""


class _Consent(_Silent):
    """Sends a browser on to another address of this machine, with the cookie that netron asks its readers for."""

    target = ""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Set-Cookie", "consent=1; path=/")
        self.send_header("Location", self.target)
        self.end_headers()


class _ModelExplorer(_Silent):
    """Files of Model Explorer's page, and the answers of its server that opening a JSON file takes.

    The page lays out in a worker, for which the browser's virtual time does not wait, but for requests it does.
    """

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path == "/":
            page = (Path(self.directory) / "index.html").read_text()
            self._answer("text/html", page.replace("</body>", f"<script>{WAITING}</script></body>"))
            return
        if not address.path.startswith("/api/"):
            super().do_GET()
            return
        answer: Any = {}
        if address.path == "/api/wait":
            time.sleep(0.5)
        if address.path == "/api/v1/get_extensions":
            answer = [
                {"type": "adapter", "id": "builtin_json", "name": "JSON", "description": "", "fileExts": ["json"]}
            ]
        elif address.path == "/api/v1/read_text_file":
            answer = {"content": Path(parse_qs(address.query)["path"][0]).read_text()}
        self._answer("application/json", json.dumps(answer))

    def _answer(self, kind: str, content: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(content.encode())


@contextmanager
def _served(handler: Any) -> Iterator[str]:
    server = ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def netron(path: Path) -> Iterator[str]:
    """The address at which netron shows a file."""
    package("netron")
    server = import_module("netron.server")
    address = server.serve(str(path))
    try:
        with _served(type("Consent", (_Consent,), {"target": f"http://localhost:{address[1]}"})) as url:
            yield url
    finally:
        server.stop(address)


@contextmanager
def model_explorer(path: Path) -> Iterator[str]:
    """The address at which Model Explorer's page shows a file: its own page and scripts, without its server."""
    page = package("model_explorer") / "web_app"
    with _served(partial(_ModelExplorer, directory=str(page))) as url:
        yield f"{url}/?data={quote(json.dumps({'models': [{'url': str(path)}]}))}"
