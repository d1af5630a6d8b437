"""The command as a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastrec
from fastrec._cli import main
from tests.cli.recorded import rollout

COMMAND = [sys.executable, "-W", "error", "-m", "fastrec"]


@pytest.fixture
def run_h5(tmp_path: Path) -> str:
    path = str(tmp_path / "run.h5")
    rollout(path)
    return path


def test_it_runs_as_a_module(run_h5: str) -> None:
    done = subprocess.run([*COMMAND, "info", run_h5, "--json"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["records"] == 12


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastrec {fastrec.__version__}\n"


def test_a_closed_pipe_ends_it_quietly(run_h5: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, "ls", run_h5], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_ascii_terminal_gets_what_it_can_print(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [*COMMAND, "info", str(tmp_path / "läufe.h5")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 3
    assert "l\\xe4ufe.h5" in done.stderr
