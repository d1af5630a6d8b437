"""`verify`, `recover` and `export`."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import fastrec
from fastrec._cli import main
from fastrec.sinks import HDF5Sink
from tests.cli.recorded import rollout


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def damage(path: str, name: str) -> None:
    with h5py.File(path) as file:
        offset = file[name].id.get_offset()
    content = bytearray(Path(path).read_bytes())
    content[offset] ^= 1
    Path(path).write_bytes(bytes(content))


def test_verify_says_that_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5")
    assert main(["verify", "run.h5"]) == 0
    assert capsys.readouterr().out.startswith("run.h5: as it was written; ")


def test_verify_lists_what_is_damaged(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5")
    damage("run.h5", "data/torso")
    assert main(["verify", "run.h5"]) == 4
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "run.h5: data/torso (torso), rows 0 to 5: other bytes than were written"
    assert out[1].startswith("run.h5: damaged in 1 block; ")
    assert main(["verify", "run.h5", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["damage"][0]["of"] == "torso"


def test_recover_finishes_what_a_killed_process_left(capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Linear(2, 2)
    sink = HDF5Sink("run.h5", segment_bytes=1 << 20)  # what is copied below takes its whole room
    with fastrec.Recorder(model, keep_op="linear", sink=sink) as rec:
        model(torch.ones(1, 2))
        rec.flush()
        for path in Path().glob("run.*"):
            shutil.copy(path, str(path).replace("run", "left"))
    assert main(["recover", "left.h5"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "left.h5: 1 record in 1 pass, 0 steps"
    assert out[1].startswith("lost: what ran after pass 0, if anything did")
    assert [str(path) for path in Path().glob("left*")] == ["left.h5"]
    assert main(["info", "left.h5"]) == 0


def test_recover_writes_over_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5")
    Path("there.h5").touch()
    assert main(["recover", "run.h5", "--to", "there.h5"]) == 3
    assert capsys.readouterr().err == "fastrec: error: 'there.h5' exists; give another path to recover to\n"


def test_export_takes_the_format_from_the_ending(capsys: pytest.CaptureFixture[str]) -> None:
    recording = rollout("run.h5")
    assert main(["export", "run.h5", "--to", "run.npz"]) == 0
    assert capsys.readouterr().out == "run.npz: numpy\n"
    with np.load("run.npz") as found:
        assert np.array_equal(found["torso"], recording.to_numpy("torso"))


def test_export_of_some_keys_by_other_names() -> None:
    recording = rollout("run.h5")
    assert main(["export", "run.h5", "--to", "run.npz", "-k", "torso=hidden", "-k", "/softmax", "-o", "by=sample"]) == 0
    with np.load("run.npz") as found:
        assert set(found) == {"hidden", "/softmax", "steps/reward", "steps/terminated", "steps/truncated"}
        assert np.array_equal(found["hidden"], recording.to_numpy("torso").reshape(-1, 3))


def test_export_of_one_phase() -> None:
    rollout("run.h5")
    assert main(["export", "run.h5", "--to", "run.npz", "--phase", "roll*"]) == 0
    assert main(["export", "run.h5", "--to", "other.npz", "--phase", "eval"]) == 1


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (
            ("run.bin",),
            1,
            "the ending of 'run.bin' does not say the format; add --format and one of numpy",
        ),
        (("run.npz", "-o", "to=3"), 1, "--option 'to=3': give NAME=VALUE with an option of 'numpy'"),
        (("run.npz", "-o", "by"), 1, "--option 'by': give NAME=VALUE"),
        (("run.npz", "-o", "by=row"), 1, "--option 'by=row': Invalid enum value 'row'"),
        (("run.npz", "-k", "torsso"), 1, "there is nothing under 'torsso'"),
        (("there.npz",), 3, "'there.npz' exists; give another path"),
        (("no/run.npz",), 3, "'no/run.npz' can't be written"),
        (("run", "--format", "d4rl"), 1, "d4rl needs observations"),
    ],
)
def test_exports_that_can_not_be(
    argv: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rollout("run.h5")
    Path("there.npz").touch()
    assert main(["export", "run.h5", "--to", *argv]) == code
    assert message in capsys.readouterr().err
    assert not Path("run.npz").exists()


def test_merge_lists_what_became_of_the_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.h5", "b.h5"):
        rollout(name)
    assert main(["merge", "a.h5", "b.h5", "--to", "run.h5", "--virtual"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run.h5: 24 records in 12 passes, 12 steps",
        *("rank  source", "0     a.h5", "1     b.h5"),
    ]
    assert main(["merge", "a.h5", "b.h5", "--to", "copied.h5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"] == [0, 1]
    assert main(["info", "copied.h5"]) == 0
    assert "2 recordings: rank 0, 1\n" in capsys.readouterr().out


def test_merge_of_a_missing_source(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.0.h5")
    assert main(["merge", "run.0.h5", "run.1.h5", "--to", "run.h5"]) == 3
    err = capsys.readouterr().err
    assert err == "fastrec: error: there is no recording at 'run.1.h5'; '.' has 'run.0.h5'\n"


def test_repack_tells_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5", steps=200)
    argv = ["repack", "run.h5", "--to", "small.h5", "--compression", "gzip", "--dtype", "float16"]
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("small.h5: 400 records, ")
    assert main([*argv, "--json"]) == 3
    assert "'small.h5' exists; give another path" in capsys.readouterr().err
    assert main(["repack", "run.h5", "--to", "other.h5", "--dtype", "flat16"]) == 1
    assert "--dtype 'flat16' is not a dtype; give float16" in capsys.readouterr().err
    assert main(["repack", "run.h5", "--to", "other.h5", "--compression", "zip"]) == 1
    assert "repack(compression='zip'): give 'gzip'" in capsys.readouterr().err


def test_a_bar_is_shown_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout("run.h5")
    monkeypatch.setattr("fastrec._cli._progress.MIN_SECONDS", 0.0)
    monkeypatch.setattr("fastrec._cli._progress.REFRESH_SECONDS", 0.0)
    assert main(["verify", "run.h5"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["verify", "run.h5"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("\r\x1b[Kcomparing [")
    assert err.endswith("\r\x1b[K")
