"""What a package index shows: the README with links that work there, and the project's URLs.

On an index a relative link leads nowhere, and an image is only shown as a file of its own. Where the repository is,
`make release REPOSITORY=https://...` says; an installation from a checkout needs neither.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_IMAGE = re.compile(r"(!\[[^\]]*\])\((?!\w+:)([^)\s]+)\)")
RELATIVE_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")


class Hook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["urls"] = {}
        if repository := os.environ.get("REPOSITORY", "").rstrip("/"):
            pages = f"{repository}/blob/main"
            text = RELATIVE_IMAGE.sub(rf"\1({pages}/\2?raw=true)", text)
            text = RELATIVE_LINK.sub(rf"]({pages}/\1)", text)
            metadata["urls"] = {
                "Documentation": f"{pages}/docs/index.md",
                "Repository": repository,
                "Changelog": f"{pages}/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
