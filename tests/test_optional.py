"""Packages that fastrec can do without are imported in one way, and a missing one is named with what installs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastrec
from fastrec._optional import DISTRIBUTION, require

ROOT = Path(__file__).parent.parent


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    message = r"to_x\(\) needs pyarrow, which is not installed; install it with pip install 'fastrec-torch\[parquet\]'"
    with pytest.raises(ImportError, match=message) as caught:
        require("pyarrow.parquet", extra="parquet", what="to_x()")
    assert isinstance(caught.value, fastrec.FastrecError)


def test_a_package_that_is_there_and_lacks_another_one_says_so_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halfway.py").write_text("import package_that_does_not_exist")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'package_that_does_not_exist'") as caught:
        require("halfway", extra="pandas", what="to_x()")
    assert not isinstance(caught.value, fastrec.FastrecError)


def extras() -> set[str]:
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) = ", section, re.MULTILINE))


def test_every_extra_that_a_message_names_exists() -> None:
    sources = "".join(path.read_text() for path in sorted((ROOT / "fastrec").rglob("*.py")))
    named = set(re.findall(r'extra="(\w+)"', sources)) | set(re.findall(r"\{DISTRIBUTION\}\[(\w+)\]", sources))
    assert {"pandas", "xarray", "sb3", "zstd"} <= named <= extras()


@pytest.mark.parametrize(
    "path",
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "fastrec").rglob("*.py")),
    ],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_nothing_tells_to_install_the_other_project_of_that_name(path: Path) -> None:
    assert re.findall(r"pip install '?fastrec(?!-torch)|\bfastrec\[", path.read_text()) == []


def test_the_distribution_is_called_the_same_everywhere() -> None:
    assert f'\nname = "{DISTRIBUTION}"\n' in (ROOT / "pyproject.toml").read_text()


WITHOUT_POSIX = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None
import torch, fastrec
model = torch.nn.Linear(2, 2)
with fastrec.Recorder(model, keep_op="linear") as rec:
    model(torch.ones(1, 2))
print(rec.recording.n_records)
try:
    fastrec.Recorder(model, keep_op="linear", sink="run.h5")
except fastrec.FastrecError as error:
    print(error)
"""


def test_a_python_without_fcntl_records_into_memory_and_refuses_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_POSIX]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    number, message = done.stdout.splitlines()
    assert number == "1" and "flock, which this Python lacks; record into RAM" in message
