"""Links lead to files and headings that exist, every page is in the index, and names in the text are real."""

import importlib
import re
from pathlib import Path

import pytest

from fastrec._errors import MissingExtraError

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *PAGES]
DOCUMENTS += sorted((ROOT / "benchmarks").glob("*.md"))

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)]*))?\)")
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"\bfastrec((?:\.[A-Za-z_]\w*)+)")


def headings(page: Path) -> list[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found]


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for target, heading in LINK.findall(FENCED.sub("", page.read_text())):
        if re.match(r"\w+:", target):
            continue
        linked = page.parent / target if target else page
        if not linked.exists() or (heading and heading not in headings(linked)):
            found.append(f"{target}#{heading}" if heading else target)
    return found


def unknown(text: str) -> list[str]:
    """The names under fastrec that do not exist."""
    return [dotted for dotted in dict.fromkeys(NAME.findall(text)) if not resolves(dotted[1:].split("."))]


def resolves(parts: list[str]) -> bool:
    found = importlib.import_module("fastrec")
    for i, part in enumerate(parts):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(["fastrec", *parts[: i + 1]]))
            except MissingExtraError:  # it is there, and what it needs isn't
                return True
            except ImportError:
                return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`, three\n[a](#one-two-three) [b](#other) [c](no.md) [d](https://x.org/no)\n")
    assert broken(page) == ["#other", "no.md"]


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    listed = {target for target, _ in LINK.findall(index) if target.endswith(".md") and not target.startswith("../")}
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES} - {"index.md"}
    # The pages about internals, and the recipes, are found in their folders.
    folders = {f"{name}/README.md" for name in ("internals", "gallery", "recipes")}
    assert listed == {page for page in pages if "/" not in page} | folders
    assert "docs/index.md" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_in_documents_are_real(page: Path) -> None:
    text = re.sub(r"https?://\S+", "", page.read_text())
    assert unknown(text) == []


def test_names_that_are_none_are_found() -> None:
    assert unknown("`fastrec.load`, fastrec.files.merge and fastrec.lod, fastrec.files.merj") == [".lod", ".files.merj"]


def test_the_readme_names_every_extra() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    section = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", section, re.MULTILINE)) - {"test", "smoke", "docs", "release", "dev"}
    install = (ROOT / "README.md").read_text().split("## Install")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", install)) >= extras
