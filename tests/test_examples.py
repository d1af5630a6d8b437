"""The examples run, and what they print about the recording holds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("demo") / "rollout.h5"
    command = [sys.executable, "-W", "error", EXAMPLES / "demo.py", "--steps", "150", "--file", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo_prints_what_was_kept_per_site(printed: str) -> None:
    found = dict(re.findall(r"^(\S+) +(?:module_exit|op) +\d+ +\d+ +(\S+) +float32 +\d", printed, re.MULTILINE))
    assert found == {"hidden1": "8x64", "hidden2": "8x64", "/softmax": "8x2"}


def test_the_demo_shows_what_the_command_line_says(printed: str) -> None:
    assert "rollout.h5: finished\n" in printed
    assert re.search(r"^  records +450 with \S+ KiB of values$", printed, re.MULTILINE)


def test_the_demo_draws_an_episode_unit_by_unit(printed: str) -> None:
    rows = re.findall(r"^(hidden2\[ ?\d+\]|push right)  +([▁▂▃▄▅▆▇█]+)  ", printed, re.MULTILINE)
    assert len(rows) == 11
    assert len({len(curve) for _, curve in rows}) == 1
    assert all("▁" in curve and "█" in curve for _, curve in rows)


def test_the_demo_computes_a_recorded_row_again(printed: str) -> None:
    assert re.search(r"observations of step 75 equals .* step 75\): True$", printed, re.MULTILINE)


def test_the_demo_finds_the_episodes_that_gymnasium_counts(printed: str) -> None:
    ours = re.search(r"^found in the recording +(\d+ +\S+ +\S+)$", printed, re.MULTILINE)
    theirs = re.search(r"^counted by Gymnasium +(\d+ +\S+ +\S+)$", printed, re.MULTILINE)
    assert ours is not None and theirs is not None
    assert ours[1].split() == theirs[1].split()
    assert int(ours[1].split()[0]) > 10


def test_the_demo_ends_by_naming_a_page_that_it_made(printed: str) -> None:
    page = Path(re.fullmatch(r"open (/.*\.html)", printed.splitlines()[-1])[1])  # type: ignore[index]
    assert page.name == "rollout.html" and "hidden1" in page.read_text()


def test_the_demo_installs_only_what_it_imports() -> None:
    makefile = (EXAMPLES.parent / "Makefile").read_text()
    recipe = makefile.split("$(DEMO_VENV)/.installed: ")[1].split("\n\n")[0]
    assert re.findall(r"\[([\w,]+)\]", recipe) == ["gym,progress"]
    imported = set(re.findall(r"^(?:import|from) (\w+)", (EXAMPLES / "demo.py").read_text(), re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) == {"fastrec", "gymnasium", "numpy", "torch", "tqdm"}


def test_without_a_terminal_progress_comes_in_plain_lines(printed: str) -> None:
    assert "step 0 of 150\n" in printed
    assert "\r" not in printed
