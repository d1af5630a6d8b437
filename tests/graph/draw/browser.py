"""What a page of a graph finds out about itself in a real browser: opened with `#test`, it runs its own checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.browser import document_of, json_in


def checks_of(page: Path) -> Any:
    """What the checks of a page found out."""
    return json_in(document_of(page, hash="test"), "checks")
