"""Commands that are given a folder, in which one file is damaged and one rank has none."""

import json
from pathlib import Path

import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec._cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three ranks, of two steps each, and a file that is no recording."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "3")
    model = torch.nn.Tanh()
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        with Recorder(model, keep_module=True, sink="run/") as rec:
            for i in range(2):
                model(torch.full((3,), float(rank + i)))
                rec.step(reward=1.0)
    Path("run/main.7.00000000.h5").write_bytes(b"no recording")


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[str, str]:
    assert main(argv) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.parametrize("path", ["run", "run/", "run/*.h5"])
def test_info_counts_all_and_names_what_is_not_read(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, "info", path)
    assert "2 recordings: rank 0, 1" in out and "4 passes" in out and err == ""
    assert "not read: 'run/main.7.00000000.h5' can't be opened as HDF5" in out
    assert "not read: of 3 ranks, 1 have no recording here: 2" in out
    assert [process["rank"] for process in json.loads(printed(capsys, "info", path, "--json")[0])["processes"]] == [
        0,
        1,
    ]


def test_what_is_not_read_is_a_warning_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, "ls", "run/")
    assert out.splitlines()[1].split()[:3] == [":out", "module_exit", "4"]
    (line,) = err.splitlines()
    assert line.startswith("fastrec: warning: 'run/main.7.00000000.h5' can't be opened") and line.endswith("here: 2")
    # Only the document goes to a program that reads it.
    assert json.loads(printed(capsys, "ls", "run/", "--json")[0])[0]["count"] == 4


def test_show_tells_the_rank(capsys: pytest.CaptureFixture[str]) -> None:
    assert "rank                   1" in printed(capsys, "show", "run/", ":out")[0]
    out, _ = printed(capsys, "show", "run/", ":out", "--record", "0", "--json")
    assert json.loads(out)["record"]["rank"] == 0


def test_report_of_a_folder_is_named_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, "report", "run/", "-o", "run.html", "--json")
    assert json.loads(out)["runs"] == ["run"] and json.loads(out)["records"] == 4
    assert Path("run.html").stat().st_size > 10_000


def test_verify_and_recover_name_the_damaged_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "run/"]) == 4
    assert "run/main.7.00000000.h5" in capsys.readouterr().out
    assert "4 records in 4 passes" in printed(capsys, "recover", "run/")[0]


def test_merge_takes_what_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "run/", "--to", "all.h5"]) == 4
    assert "'run/main.7.00000000.h5' can't be opened" in capsys.readouterr().err
    printed(capsys, "merge", "run/main.[01].*.h5", "--to", "all.h5")
    assert fastrec.load("all.h5").stack(":out", by="step").shape == (2, 2, 3)
