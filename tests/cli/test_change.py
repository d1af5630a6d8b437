"""`verify`, `recover` and `export`."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from recorded import rollout

import fastrec
from fastrec._cli import main


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
    assert out[0] == "run.h5: data/torso (torso), rows 0 to 6: other bytes than were written"
    assert out[1].startswith("run.h5: damaged in 1 block; ")
    assert main(["verify", "run.h5", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["damage"][0]["of"] == "torso"


def test_recover_finishes_what_a_killed_process_left(capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Linear(2, 2)
    with fastrec.Recorder(model, keep_op="linear", sink="run.h5") as rec:
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
    assert main(["export", "run.h5", "run.npz"]) == 0
    assert capsys.readouterr().out == "run.npz: numpy\n"
    with np.load("run.npz") as found:
        assert np.array_equal(found["torso"], recording.to_numpy("torso"))


def test_export_of_some_keys_by_other_names() -> None:
    recording = rollout("run.h5")
    assert main(["export", "run.h5", "run.npz", "-k", "torso=hidden", "-k", "/softmax", "-o", "by=sample"]) == 0
    with np.load("run.npz") as found:
        assert set(found) == {"hidden", "/softmax", "steps/reward", "steps/terminated", "steps/truncated"}
        assert np.array_equal(found["hidden"], recording.to_numpy("torso").reshape(-1, 3))


def test_export_of_one_phase() -> None:
    rollout("run.h5")
    assert main(["export", "run.h5", "run.npz", "--phase", "roll*"]) == 0
    assert main(["export", "run.h5", "other.npz", "--phase", "eval"]) == 1


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("run.bin",), 1, "'run.bin' does not tell the format; add --format and one of numpy, safetensors"),
        (("run.npz", "-o", "to=3"), 1, "--option 'to=3': give NAME=VALUE with a name that 'numpy' has"),
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
    assert main(["export", "run.h5", *argv]) == code
    assert message in capsys.readouterr().err
    assert not Path("run.npz").exists()


def test_a_bar_is_shown_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout("run.h5")
    monkeypatch.setattr("fastrec._cli._progress.QUIET_SECONDS", 0.0)
    monkeypatch.setattr("fastrec._cli._progress.EVERY_SECONDS", 0.0)
    assert main(["verify", "run.h5"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["verify", "run.h5"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("\r\x1b[Kcomparing [")
    assert err.endswith("\r\x1b[K")
