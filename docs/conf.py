"""Builds the site: all pages as they are, and a reference made from the docstrings. `make docs` runs it.

The pages link to each other, and to files beside `docs/`, as they do on a code host. So the source folder of the site
is the repository itself, and what only the site needs is added while it is built: the tree of pages, and
`docs/reference/` with one page for each public module.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))

import fastrec  # noqa: E402

project = "fastrec"
release = version = fastrec.__version__
copyright = "fastrec contributors"

root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/*.md", "*.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# Headings get the anchors that code hosts give them.
myst_heading_anchors = 4

napoleon_numpy_docstring = False
napoleon_custom_sections = [("Fields", "params_style"), ("Phases", "params_style")]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"fastrec {release}"
html_copy_source = False

MODULES = [
    "fastrec",
    *(f"fastrec.{name}" for name in ("predicates", "sinks", "engines", "graph", "files", "exports")),
    *(
        f"fastrec.integrations.{p.stem}"
        for p in sorted((ROOT / "fastrec/integrations").glob("[a-z]*.py"))
        if p.stem != "ray" or find_spec("ray")  # 400 MB, which not every environment has
    ),
]


def public_names(module: ModuleType) -> list[str]:
    """The names that a module hands on (`from ... import name as name`) or defines, in the order of its source."""
    return [name for name in _exported(ast.parse(inspect.getsource(module))) if not name.startswith("_")]


def _exported(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        # What is loaded late is imported for the type checker alone, behind `if TYPE_CHECKING:`.
        for statement in node.body if isinstance(node, ast.If) else [node]:
            if isinstance(statement, ast.ImportFrom):
                yield from (alias.name for alias in statement.names if alias.asname == alias.name)
            elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
                yield statement.name
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                yield statement.target.id


def write_reference(app: Any) -> None:
    """A page for each public module, and one that lists them."""
    folder = DOCS / "reference"
    folder.mkdir(exist_ok=True)
    for name in MODULES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the frameworks that are imported
            module = importlib.import_module(name)
        (folder / f"{name}.rst").write_text(reference_page(module))
    pages = "".join(f"   {name}\n" for name in MODULES)
    (folder / "index.rst").write_text(f"API reference\n=============\n\n.. toctree::\n\n{pages}")


def reference_page(module: ModuleType) -> str:
    blocks = [f"{module.__name__}\n{'=' * len(module.__name__)}", f".. automodule:: {module.__name__}"]
    for name in public_names(module):
        value = getattr(module, name)
        if inspect.isclass(value):
            blocks.append(f".. autoclass:: {name}\n   :members:\n   :show-inheritance:")
        else:
            blocks.append(f".. auto{'function' if inspect.isroutine(value) else 'data'}:: {name}")
    return "\n\n".join(blocks) + "\n"


def add_tree(app: Any, page: str, source: list[str]) -> None:
    """Give the index its tree: the pages that it links to, in its order, then the recipes and the internals."""
    if page != root_doc:
        return
    linked = dict.fromkeys(re.findall(r"\]\(((?:gallery/)?[\w-]+)\.md\)", source[0]))
    trees = {"Guide": linked, "Recipes": ["recipes/*"], "Reference": ["reference/index"], "Internals": ["internals/*"]}
    trees["Project"] = ["/README", "/CHANGELOG", "/CONTRIBUTING", "/benchmarks/*"]
    for caption, pages in trees.items():
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n:caption: " + caption + "\n" + "\n".join(pages) + "\n```\n"


class PlainAttributes:
    """Undoes what napoleon does to the docstrings of attributes, where it takes all before a colon for a type."""

    def __init__(self, app: Any) -> None:
        self.lines: list[str] = []
        app.connect("autodoc-process-docstring", self.remember, priority=400)  # before napoleon
        app.connect("autodoc-process-docstring", self.restore, priority=600)

    def remember(self, *args: Any) -> None:
        self.lines = list(args[-1])

    def restore(self, app: Any, what: str, *args: Any) -> None:
        if what in ("attribute", "data", "property"):
            args[-1][:] = self.lines


def setup(app: Any) -> None:
    app.connect("builder-inited", write_reference)
    app.connect("source-read", add_tree)
    PlainAttributes(app)
