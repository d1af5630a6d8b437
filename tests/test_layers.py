"""A folder is a layer: it imports only what lies below it, in no circle; `import fastrec` stays light."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastrec"

# From the ground up. A folder (or a file at the top) may import from those in lines above its own; imports for the type
# checker and in functions count like any other. Drawing knows nothing of graphs, so that a dry run can be drawn, too.
LAYERS = """
    _errors
    _optional _torch _web
    ops
    events
    predicates report
    engines recording
    sinks exports
    session
    files
    graph.draw
    dryrun _cli integrations extract
    graph
""".strip().splitlines()
HEIGHT = {room: height for height, line in enumerate(LAYERS) for room in line.split()}
FACE = {"", "__main__"}  # hands names on
HEIGHT |= dict.fromkeys(FACE, len(LAYERS))

# What a file needs of torch's classes or of the session is no business of the recorder's own parts.
OPTIONAL = {
    *("pandas", "networkx", "tqdm", "gymnasium", "stable_baselines3", "torchrl", "tensordict", "transformers"),
    *("pytorch_lightning", "lightning", "IPython", "rich", "graphviz", "xarray", "datasets", "minari", "safetensors"),
    *("hdf5plugin", "onnx", "ray"),
}
NOT_LOADED_BY_IMPORT = ["fastrec.graph", "fastrec.integrations", "h5py", "torch._dynamo", *sorted(OPTIONAL)]


def module_name(path: Path) -> str:
    """The name inside the package: "" for `fastrec` itself, "sinks.ram.pool" for `fastrec.sinks.ram.pool`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.AST, modules: frozenset[str]) -> Iterator[str]:
    """The names of this package's modules that a source imports, wherever in the source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"relative import in line {node.lineno}: write `from fastrec...`")
        elif isinstance(node, ast.ImportFrom):
            dotted = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in dotted:
            package, _, inside = name.partition(".")
            if package == "fastrec":
                yield inside if inside in modules else inside.rpartition(".")[0]


@cache
def import_graph() -> dict[str, set[str]]:
    known = frozenset(MODULES)
    return {name: set(imports(ast.parse(path.read_text()), known)) - {name} for name, path in MODULES.items()}


def room_of(module: str) -> str:
    inner = ".".join(module.split(".")[:2])
    return inner if inner in HEIGHT else module.partition(".")[0]


def violation(importer: str, imported: str) -> str | None:
    """Why `importer` must not import `imported`, or None."""
    high, low = room_of(importer), room_of(imported)
    if high != low and HEIGHT[low] >= HEIGHT[high]:
        return f"fastrec.{importer} imports fastrec.{imported}, which is not below it"
    return None


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other in a loop (Tarjan)."""
    found: list[list[str]] = []
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for target in sorted(graph.get(name, ())):
            if target not in number:
                visit(target)
            if target in stack:
                low[name] = min(low[name], low[target])
        if low[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1 or name in graph.get(name, ()):
                found.append(sorted(group))

    for name in graph:
        if name not in number:
            visit(name)
    return found


def floors(graph: dict[str, set[str]]) -> int:
    """How many rooms stand on top of each other."""
    rooms: dict[str, set[str]] = {}
    for name, targets in graph.items():
        rooms.setdefault(room_of(name), set()).update(room_of(t) for t in targets if room_of(t) != room_of(name))

    @cache
    def height(room: str) -> int:
        return 1 + max((height(target) for target in rooms[room]), default=0)

    return max(height(room) for room in rooms if room)


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


def test_every_room_has_one_height() -> None:
    assert {room_of(name) for name in MODULES} == set(HEIGHT)


def test_rooms_import_only_what_lies_below_them() -> None:
    assert [
        why for name in MODULES for target in sorted(import_graph()[name]) if (why := violation(name, target))
    ] == []


def test_no_files_import_each_other_in_a_loop() -> None:
    assert circles(import_graph()) == []


def test_the_house_stays_as_low_as_it_was_built() -> None:
    """Counted are the rooms at the top of the package, without the face, and what they import of each other."""

    def top(room: str) -> str:
        return room.partition(".")[0]

    arrows = {(room_of(a), room_of(b)) for a, targets in import_graph().items() for b in targets}
    arrows = {(top(a), top(b)) for a, b in arrows if top(a) != top(b) and a not in FACE}
    rooms = {top(room_of(name)) for name in MODULES} - FACE
    assert (len(rooms) <= 19, floors(import_graph()) <= 9, len(arrows) <= 83) == (True,) * 3


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("session.recorder", "sinks.ram.sink", True),
        ("predicates._events", "predicates._base", True),
        ("engines.eager.engine", "sinks.ram.sink", False),
        ("engines.eager.engine", "recording._source", False),
        ("events.context", "session.recorder", False),
        ("_errors", "events.sites", False),
        ("session.recorder", "graph.log", False),
        ("graph.log", "session.recorder", True),
        ("dryrun.drawing", "graph.draw.dot", True),
        ("graph.draw.dot", "graph.structure", False),
        ("recording._describe", "report.sums", True),
        ("report.sums", "recording._arrays", False),
        ("_web.document", "report.page", False),
        ("session.recorder", "", False),
    ],
)
def test_the_layer_check_tells_good_from_bad(importer: str, imported: str, allowed: bool) -> None:
    assert (violation(importer, imported) is None) is allowed


def test_imports_are_found_anywhere_in_a_source() -> None:
    source = (
        "import fastrec._a\nfrom fastrec import _b, n\nif TYPE_CHECKING:\n    from fastrec.sinks import _c\n"
        "class C:\n    from fastrec.sinks import ram, R\ndef f():\n    from fastrec._d import x\n"
    )
    known = frozenset({"", "_a", "_b", "_d", "sinks", "sinks.ram", "sinks._c"})
    assert set(imports(ast.parse(source), known)) == {"_a", "_b", "_d", "", "sinks.ram", "sinks", "sinks._c"}


def test_a_circle_is_found_and_a_straight_line_is_none() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert floors({"a.x": {"b.y"}, "b.y": {"c.z"}, "c.z": set(), "d": {"c.z"}}) == 3


@pytest.mark.parametrize("name", NOT_LOADED_BY_IMPORT)
def test_import_does_not_load(name: str, loaded_by_fastrec: set[str]) -> None:
    assert "fastrec.session.recorder" in loaded_by_fastrec
    assert name not in loaded_by_fastrec


def test_the_probe_sees_what_is_loaded() -> None:
    assert "h5py" in newly_loaded("import h5py")


# torch itself loads tqdm where it is installed, which hides it from the probe.
@pytest.mark.parametrize("name", [name for name in MODULES if room_of(name) not in ("exports", "integrations", "_cli")])
def test_optional_packages_are_not_imported_with_the_module(name: str) -> None:
    assert packages_at_top(ast.parse(MODULES[name].read_text())).isdisjoint(OPTIONAL)


def test_packages_at_the_top_are_found() -> None:
    source = "import tqdm.auto as t\nfrom pandas.api import types\ndef f():\n    import gymnasium\n"
    assert packages_at_top(ast.parse(source)) == {"tqdm", "pandas"}


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name) in ("dryrun", "graph.draw")])
def test_what_lies_below_the_graph_is_loaded_without_it(module: str) -> None:
    """The package around ``graph.draw`` loads its files when they are asked for, so no import comes back to them."""
    code = f"import sys, fastrec.{module}; print('fastrec.graph.history' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")
