"""The figures in the documents are those of the last benchmark, and links lead to files that exist."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.figures import PLACES, RESULTS, ROOT, filled

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)#]*)(?:#([^)]*))?\)")


@pytest.mark.parametrize("document", PLACES)
def test_documents_show_the_last_measured_figures(document: str) -> None:
    shown = (ROOT / document).read_text()
    assert shown == filled(document, json.loads(RESULTS.read_text())), "run `python -m benchmarks.figures`"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    for target, heading in LINK.findall(path.read_text()):
        if target.startswith("http"):
            continue
        linked = path.parent / target if target else path
        assert linked.exists(), f"{path.name} links to {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
