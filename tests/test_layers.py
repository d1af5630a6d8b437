"""Modules import downward only, and `import fastrec` stays light."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastrec"

# From the lowest to the highest: a module may import from its own layer and from those below.
LAYERS = {
    "data": "_errors _forks _sites _catalog _capture _ops _op_* _halt".split(),
    "contracts": "_contracts _context _alike _alone _aside _blocks _copying _recording* _state".split(),
    "parts": "predicates predicates.* engines engines.* sinks sinks.*".split(),
    "assembly": [
        *"_options _plan _run _taps _batch _variants _failures _steps _seeds _sinks_of _session _closing".split(),
        *("_recorder", "_oneshot", "_load", "_dry_*", "files", "files.*", ""),
    ],
    "slow path": "graph graph.*".split(),
    "edges": "integrations integrations.* exports exports.* __main__ _cli _cli.*".split(),
}
# A layer whose folders may not import from each other.
FOLDERS_APART = {"parts"}

OPTIONAL = {
    *("pandas", "networkx", "tqdm", "gymnasium", "stable_baselines3", "torchrl", "tensordict", "transformers"),
    *("pytorch_lightning", "lightning", "IPython", "rich", "graphviz", "xarray", "datasets", "minari", "safetensors"),
    "hdf5plugin",
}
NOT_LOADED_BY_IMPORT = ["fastrec.graph", "fastrec.integrations", "h5py", "torch._dynamo", *sorted(OPTIONAL)]


def module_name(path: Path) -> str:
    """The name inside the package: "" for `fastrec` itself, "sinks.ram" for `fastrec.sinks.ram.sink`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layers_of(name: str) -> list[str]:
    return [layer for layer, patterns in LAYERS.items() if any(fnmatchcase(name, p) for p in patterns)]


def inside_package(dotted: str) -> str | None:
    head, _, rest = dotted.partition(".")
    return rest if head == "fastrec" else None


def imports(tree: ast.AST, modules: frozenset[str]) -> Iterator[str]:
    """The names of this package's modules that a source imports, wherever in the source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [inside_package(alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"relative import in line {node.lineno}: write `from fastrec...`")
        elif isinstance(node, ast.ImportFrom) and (base := inside_package(node.module or "")) is not None:
            full = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            targets = [name if name in modules else base for name in full]
        else:
            continue
        yield from (target for target in targets if target is not None)


def violation(importer: str, imported: str) -> str | None:
    """Why `importer` must not import `imported`, or None."""
    order = list(LAYERS)
    (low,), (high,) = layers_of(imported), layers_of(importer)
    if order.index(low) > order.index(high):
        return f"fastrec.{importer} ({high}) imports fastrec.{imported} ({low}), which lies above it"
    if low == high and low in FOLDERS_APART and imported.split(".")[0] != importer.split(".")[0]:
        return f"fastrec.{importer} imports fastrec.{imported} from another folder of the {low}"
    return None


@cache
def import_graph() -> dict[str, set[str]]:
    known = frozenset(MODULES)
    return {name: set(imports(ast.parse(path.read_text()), known)) for name, path in MODULES.items()}


def without_typing(tree: ast.Module) -> ast.Module:
    """The source less what only the type checker runs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    return tree


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for target in sorted(graph.get(name, ())):
                if target != name and (cycle := visit(target, [*path, name])):
                    return cycle
            done.add(name)
        return None

    return next((cycle for name in graph if (cycle := visit(name, []))), None)


def packages_at_top(tree: ast.Module) -> set[str]:
    """The packages that are imported when the module is."""
    plain = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    froms = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in plain + froms}


def newly_loaded(statement: str) -> set[str]:
    """What a statement loads in a fresh interpreter that has already loaded torch."""
    code = f"import json, sys, torch; old = set(sys.modules); {statement}; new = set(sys.modules) - old"
    code += "; print(json.dumps(list(new)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.fixture(scope="module")
def loaded_by_fastrec() -> set[str]:
    return newly_loaded("import fastrec")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_one_layer(name: str) -> None:
    assert len(layers_of(name)) == 1, f"give fastrec.{name} one layer in LAYERS"


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_from_their_layer_or_below(name: str) -> None:
    assert [why for target in sorted(import_graph()[name]) if (why := violation(name, target))] == []


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("_recorder", "sinks._ram", True),
        ("predicates._op", "predicates._base", True),
        ("engines.eager", "sinks.ram", False),
        ("_context", "_recorder", False),
        ("_sites", "", False),
        ("_recorder", "graph", False),
        ("graph.trace", "_recorder", True),
    ],
)
def test_the_layer_check_tells_good_from_bad(importer: str, imported: str, allowed: bool) -> None:
    assert (violation(importer, imported) is None) is allowed


def test_imports_are_found_anywhere_in_a_source() -> None:
    source = "import fastrec._a\nfrom fastrec import _b, n\nclass C:\n    from fastrec.sinks import ram, R\n"
    found = set(imports(ast.parse(source), frozenset({"", "_a", "_b", "sinks", "sinks.ram"})))
    assert found == {"_a", "_b", "", "sinks.ram", "sinks"}


def test_no_module_imports_itself_through_others() -> None:
    known = frozenset(MODULES)
    trees = {name: without_typing(ast.parse(path.read_text())) for name, path in MODULES.items()}
    assert find_cycle({name: set(imports(tree, known)) for name, tree in trees.items()}) is None


def test_imports_for_the_type_checker_make_no_cycle() -> None:
    source = "if TYPE_CHECKING:\n    from fastrec import _a\nelse:\n    from fastrec import _b\n"
    assert set(imports(without_typing(ast.parse(source)), frozenset({"_a", "_b"}))) == {"_b"}


def test_a_cycle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("name", NOT_LOADED_BY_IMPORT)
def test_import_does_not_load(name: str, loaded_by_fastrec: set[str]) -> None:
    assert "fastrec.session.recorder" in loaded_by_fastrec
    assert name not in loaded_by_fastrec


def test_the_probe_sees_what_is_loaded() -> None:
    assert "h5py" in newly_loaded("import h5py")


# torch itself loads tqdm where it is installed, which hides it from the probe.
@pytest.mark.parametrize("name", [name for name in MODULES if layers_of(name) != ["edges"]])
def test_optional_packages_are_not_imported_with_the_module(name: str) -> None:
    assert packages_at_top(ast.parse(MODULES[name].read_text())).isdisjoint(OPTIONAL)


def test_packages_at_the_top_are_found() -> None:
    source = "import tqdm.auto as t\nfrom pandas.api import types\ndef f():\n    import gymnasium\n"
    assert packages_at_top(ast.parse(source)) == {"tqdm", "pandas"}
