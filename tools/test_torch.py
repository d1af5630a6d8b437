"""Runs the tests with the torch of this environment, and writes the result into a table.

    make test-torch TORCH=2.15.0      # makes the environment, and runs: python -m tools.test_torch docs/versions.md

Each part of the package is a column, each version of torch a row. The row of this version is replaced, the others stay.
Left out are tests of frameworks that are not installed, or can't be imported with this torch, and tests that take more
than five seconds.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import numpy
import torch

from fastrec._torch.versions import OLDEST_COMPILED_TORCH, TORCH_VERSION

ROOT = Path(__file__).resolve().parent.parent

COLUMNS = {
    "eager, static": ["engines", "_torch", "ops", "events", "predicates", "session", "dryrun", "recording"],
    "compiled": ["engines/compiled"],
    "graph": ["graph"],
    "files": ["sinks", "files", "exports", "cli"],
    "frameworks": ["integrations"],
}
"""The folders of tests by column; those of the compiled engine are in their own column only."""

FRAMEWORKS = {
    "integrations/test_cleanrl.py": "gymnasium",
    "integrations/test_gymnasium.py": "gymnasium",
    "integrations/test_lightning.py": "pytorch_lightning",
    "integrations/test_sb3.py": "stable_baselines3",
    "integrations/test_torchrl.py": "torchrl",
    "integrations/test_transformers.py": "transformers",
}

ROW = re.compile(r"^\| (\d+\.\d+\.\d+) \|.*$", re.MULTILINE)


def main(table: Path) -> int:
    """The exit status: 1 if a test failed."""
    version = str(torch.__version__).partition("+")[0]
    missing = sorted({name for name in set(FRAMEWORKS.values()) if not is_importable(name)})
    left_out = [path for path, name in FRAMEWORKS.items() if name in missing]
    cells, status = [], 0
    for name, folders in COLUMNS.items():
        passed, failed = run(folders, [*left_out, *([] if name == "compiled" else COLUMNS["compiled"])])
        cells.append(f"{passed} passed" + (f", {failed} failed" if failed else ""))
        if name == "compiled" and TORCH_VERSION < OLDEST_COMPILED_TORCH and not failed:
            cells[-1] = "refused"
        status |= bool(failed) or not passed
        print(f"torch {version}: {name}: {cells[-1]}", flush=True)
    if missing:
        cells[-1] += f" (without {', '.join(missing)})"
    row = f"| {' | '.join([version, platform.python_version(), numpy.__version__, *cells])} |"
    table.write_text(with_row(table.read_text(), version, row))
    return status


def run(folders: list[str], left_out: list[str]) -> tuple[int, int]:
    """How many tests passed, and how many failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["-m", "not slow and not long and not zoo", "--no-header", "-rfE", "--tb=line"]
        command += [f"--ignore=tests/{path}" for path in left_out]
        subprocess.run([*command, *(f"tests/{path}" for path in folders)], cwd=ROOT, check=False)
        suite = next(ElementTree.parse(report).iter("testsuite"))
    tests, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    return tests - failed - skipped, failed


def is_importable(name: str) -> bool:
    """Whether a framework is here and can be imported; one that was built for another torch can't."""
    return subprocess.run([sys.executable, "-W", "ignore", "-c", f"import {name}"], capture_output=True).returncode == 0


def with_row(text: str, version: str, row: str) -> str:
    """A page with the row of a version in its table, the newest first."""
    head, line, rest = text.partition("|---|---|---|---|---|---|---|---|\n")
    table, _, tail = rest.partition("\n\n") if rest.startswith("|") else ("", "", rest.removeprefix("\n"))
    rows = {match[1]: match[0] for match in ROW.finditer(table)} | {version: row}
    ordered = sorted(rows, key=lambda key: tuple(map(int, key.split("."))), reverse=True)
    lines = "".join(f"{rows[key]}\n" for key in ordered)
    return f"{head}{line}{lines}\n{tail}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
