"""Private names of torch stand in `_torch/`, and nowhere else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastrec
from fastrec._torch import internals

PACKAGE = Path(fastrec.__file__).parent
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if "_torch" not in path.relative_to(PACKAGE).parts]
DOTTED = re.compile(r"torch(\.\w+)+")
OF_PYTHON = {"_getframe", "_fields"}


def dotted(node: ast.AST) -> str:
    """`torch.nn.Module` for an attribute of an attribute of a name, else ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def torch_names(tree: ast.Module) -> set[str]:
    """The names in a file that are torch, or something of it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname or a.name.partition(".")[0] for a in node.names if a.name.partition(".")[0] == "torch"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def private_uses(source: str, own: frozenset[str]) -> Iterator[str]:
    """Each place of a source that reaches a private name of torch."""
    tree = ast.parse(source)
    of_torch = torch_names(tree)
    docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            yield from (f"{node.module}.{a.name}" for a in node.names if is_private(f"{node.module}.{a.name}"))
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("torch.") and is_private(a.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            name = dotted(node)
            if name.partition(".")[0] in of_torch:
                yield name
            elif node.attr not in {*own, *OF_PYTHON, *internals.ATTRIBUTES}:
                yield f"?.{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            if DOTTED.fullmatch(node.value) and is_private(node.value):
                yield node.value


def defined(tree: ast.AST) -> Iterator[str]:
    """The private names that a file defines: attributes of its objects, methods, functions, slots and fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and dotted(node.value) == "self":
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("_"):
            yield node.value  # of __slots__


OWN = frozenset(name for path in sorted(PACKAGE.rglob("*.py")) for name in defined(ast.parse(path.read_text())))

# Strings that are data: how torch names the module of a function, which files of a model may hold too.
# And a name of Ray's, whose runners have no public number of the weights that they play with.
ALLOWED = {"ops/table.py": {"torch._tensor"}, "integrations/ray.py": {"?._weights_seq_no"}}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_reaches_no_private_name_of_torch(path: Path) -> None:
    allowed = ALLOWED.get(path.relative_to(PACKAGE).as_posix(), set())
    assert set(private_uses(path.read_text(), OWN)) - allowed == set()


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch._C._len_torch_function_stack()",
        "from torch._dynamo import config",
        "import torch._inductor",
        "from torch.nn.modules.module import _global_forward_hooks",
        "from torch.nn.modules import module as m\nm._global_forward_hooks",
        "from torch import nn\nnn.Module._call_impl(x)",
        "import sys\nsys.modules['torch._dynamo.eval_frame']",
        "def f(x):\n    return x._is_view()",
    ],
)
def test_a_private_name_is_found_however_it_is_reached(source: str) -> None:
    assert list(private_uses(source, frozenset()))


def test_public_names_are_no_fault() -> None:
    source = "import torch\n'torch.float32'\ndef f(x):\n    return torch.nn.Module.__call__(x), x._version, x._own"
    assert list(private_uses(source, frozenset({"_own"}))) == []


def test_every_internal_name_says_what_it_is_for() -> None:
    assert all(internals.ATTRIBUTES.values())


def test_a_name_that_torch_lacks_is_told_with_its_version() -> None:
    with pytest.raises(ImportError, match=r"uses torch._C._nothing_of_the_kind, which torch 2\.\d+.* does not have"):
        internals.find_private("_C._nothing_of_the_kind")
