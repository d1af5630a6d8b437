"""The site has every page and every public name, and needs nothing from elsewhere to be read."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md"]

IMPORT = re.compile(r"^from (fastrec[\w.]*) import ([\w, ]+)$", re.MULTILINE)
# What a browser would load. Links that a reader may follow are not among it.
LOADED = re.compile(r"""<(?:script|img|iframe)[^>]+src="([^"]+)"|<link[^>]+href="([^"]+)"|url\(["']?([^)"']+)""")


def configuration() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loaded_from_elsewhere(text: str) -> list[str]:
    found = [address for match in LOADED.finditer(text) for address in match.groups() if address]
    return [address for address in found if re.match(r"\w+:(?<!data:)|//", address)]


def test_what_a_page_would_load_from_elsewhere_is_found() -> None:
    text = '<a href="https://x.org"><script src="_static/a.js"><link rel="stylesheet" href="https://x.org/a.css">'
    assert loaded_from_elsewhere(text + "@font-face { src: url(//x.org/a.woff) } url(data:image/png)") == [
        "https://x.org/a.css",
        "//x.org/a.woff",
    ]


def test_public_names_are_those_that_a_module_hands_on_or_defines() -> None:
    conf = configuration()
    fastrec, predicates = (importlib.import_module(name) for name in ("fastrec", "fastrec.predicates"))
    assert {"Recorder", "record", "load", "recover", "halt", "FastrecError"} <= set(conf.public_names(fastrec))
    assert "import_module" not in conf.public_names(fastrec)
    assert {"op", "structural", "ALWAYS"} <= set(conf.public_names(predicates))


@pytest.mark.slow
def test_the_site_has_every_page_and_every_public_name(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", ROOT / "docs", ROOT, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.stderr == ""
    for page in PAGES:
        assert (tmp_path / page.relative_to(ROOT)).with_suffix(".html").exists()

    conf = configuration()
    names = {(name, public) for name in conf.MODULES for public in conf.public_names(importlib.import_module(name))}
    # What the pages import is public as well.
    text = "".join(page.read_text() for page in PAGES)
    imports = [found for found in IMPORT.findall(text) if found[0] in conf.MODULES]
    names |= {(module, name.strip()) for module, imported in imports for name in imported.split(",")}
    reference = {module: (tmp_path / f"docs/reference/{module}.html").read_text() for module in conf.MODULES}
    missing = [f"{module}.{name}" for module, name in names if f'id="{module}.{name}"' not in reference[module]]
    assert missing == []

    for file in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]:
        assert loaded_from_elsewhere(file.read_text()) == [], file
