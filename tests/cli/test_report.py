"""``fastrec report`` writes a page of one recording or several, and says what is wrong with them."""

import json
import re
from pathlib import Path

import pytest
import torch

import fastrec
from fastrec._cli import main
from tests.cli.recorded import rollout
from tests.helpers.browser import open_page


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def runs_of(page: str) -> list[str]:
    match = re.search(r'id="data">(.*?)</script>', Path(page).read_text(), re.DOTALL)
    assert match is not None
    return [run["name"] for run in json.loads(match[1])["runs"]]


def test_a_page_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5")
    assert main(["report", "run.h5", "-o", "report.html"]) == 0
    assert capsys.readouterr().out == "report.html: 2 sites, 12 records\n"
    assert runs_of("report.html") == ["run"]


def test_several_runs_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("a.h5")
    rollout("b.h5", steps=9)
    assert main(["report", "a.h5", "b.h5", "--to", "both.html", "--title", "two <seeds>", "--phase", "rollout"]) == 0
    opened = open_page(Path("both.html"), 'return [document.title, all("#runs strong").map((e) => e.textContent)]')
    assert opened.problems == [] and opened.result == ["two <seeds>", ["a", "b"]]


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    for folder in ("one", "two"):
        Path(folder).mkdir()
        rollout(f"{folder}/run.h5")
    assert main(["report", "one/run.h5", "two/run.h5", "-o", "report.html"]) == 0
    assert runs_of("report.html") == ["one/run.h5", "two/run.h5"]


def test_programs_get_json(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5")
    assert main(["report", "run.h5", "-o", "report.html", "--json", "--no-ranks", "--bins", "3"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "page": "report.html",
        "runs": ["run"],
        "records": 12,
        "bad": {"run": []},
    }


def test_values_that_are_not_finite_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with fastrec.Recorder(torch.nn.ReLU(), keep_op=True, sink="run.h5") as rec:
        for value in (1.0, float("inf"), float("nan")):
            rec.log(torch.tensor([value]))
    assert main(["report", "run.h5", "-o", "report.html"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "/relu: first infinity in pass 1"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["none.h5", "-o", "new.html"], 3, "there is no recording"),
        (["run.h5", "-o", "old.html"], 3, "'old.html' exists; give another path, or --overwrite"),
        (["run.h5", "run.h5", "-o", "new.html"], 1, "'run.h5' is given twice; give each recording once"),
        (["run.h5", "-o", "new.html", "--phase", "eval"], 1, "select(phase='eval') matches nothing"),
        (["run.h5", "-o", "new.html", "--bins", "0"], 1, "describe(bins=0): give a whole number from 1 up"),
        (["run.h5", "-o", "no/new.html"], 3, "'no/new.html' can't be written"),
        (["run.h5"], 2, ""),
    ],
)
def test_what_can_not_be_done_is_told(
    argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rollout("run.h5")
    Path("old.html").write_text("mine")
    assert main(["report", *argv]) == code
    assert message in capsys.readouterr().err
    assert Path("old.html").read_text() == "mine" and not Path("new.html").exists()


def test_a_page_is_written_over_where_that_is_asked_for() -> None:
    rollout("run.h5")
    Path("old.html").write_text("mine")
    assert main(["report", "run.h5", "-o", "old.html", "--overwrite"]) == 0
    assert runs_of("old.html") == ["run"]
