"""`info`, `ls` and `show`."""

import json
from pathlib import Path

import pytest
import torch

import fastrec
from fastrec import CaptureSpec
from fastrec._cli import main
from tests.cli.recorded import rollout


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def document(capsys: pytest.CaptureFixture[str], *argv: str) -> object:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_info_tells_how_much_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5")
    assert main(["info", "run.h5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run.h5: finished"
    told = dict(line.split(None, 1) for line in lines[1:])
    assert told["passes"] == "6 passes"
    assert told["phases"] == "rollout 6"
    assert told["steps"] == "6 of reward, terminated, truncated"
    assert told["records"] == "12 with 240 B of values"
    assert told["keep_op"] == "op('softmax')"


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5")
    found = document(capsys, "info", "run.h5")
    assert isinstance(found, dict)
    assert (found["finished"], found["passes"], found["records"], found["nbytes"]) == (True, 6, 12, 240)
    assert (found["episodes"], found["phases"], found["step_columns"]) == (
        3,
        {"rollout": 6},
        ["reward", "terminated", "truncated"],
    )


def test_info_of_a_recording_that_grows_says_how_to_finish_it(capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Linear(2, 2)
    with fastrec.Recorder(model, keep_op="linear", sink="run.h5") as rec:
        model(torch.ones(1, 2))
        rec.flush()
        assert main(["info", "run.h5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("run.h5: not finished: still being written, or its process was killed\n")
    assert "`fastrec recover run.h5` finishes it" in out


def test_ls_lists_sites_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5")
    assert main(["ls", "run.h5"]) == 0
    assert capsys.readouterr().out == (
        "site      kind         records  passes  shape  dtype    bytes\n"
        "torso     module_exit        6       6  2x3    float32  144 B\n"
        "/softmax  op                 6       6  2x2    float32   96 B\n"
    )


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        ((), ["torso", "/softmax"]),
        (("**max",), ["/softmax"]),
        (("**max", "t*"), ["torso", "/softmax"]),
        (("--sort", "name"), ["/softmax", "torso"]),
        (("--sort", "bytes"), ["torso", "/softmax"]),
        (("--sort", "records"), ["torso", "/softmax"]),
    ],
)
def test_ls_filters_and_sorts(argv: tuple[str, ...], names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5")
    found = document(capsys, "ls", "run.h5", *argv)
    assert isinstance(found, list)
    assert [facts["name"] for facts in found] == names


def test_a_glob_without_a_match_names_near_sites(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5")
    assert main(["ls", "run.h5", "torsso"]) == 1
    assert capsys.readouterr().err == "fastrec: error: no site matches 'torsso'; did you mean 'torso'?\n"


def test_show_tells_statistics_and_the_last_record(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5", steps=2)
    assert main(["show", "run.h5", "torso"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[3] == "activation: 12 numbers, mean 0.625, std 0.6495, from 0 to 1.5, 6 zero"
    assert out[5] == "ActivationRecord('torso:1', site='torso', 2x3 float32 detached, pass 1, step 1)"
    assert out[-2:] == ["    1.5 1.5 1.5", "      0   0   0"]


def test_show_of_one_record(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5", steps=2)
    found = document(capsys, "show", "run.h5", "torso", "--record", "0")
    assert isinstance(found, dict)
    assert found["record"]["pass_index"] == 0
    assert found["record"]["activation"] == [1.0] * 3 + [0.0] * 3
    assert found["statistics"]["activation"]["mean"] == 0.5


def test_show_of_a_record_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5", steps=2)
    assert main(["show", "run.h5", "torso", "--record", "2"]) == 1
    assert "--record 2: 'torso' has the records 0 to 1" in capsys.readouterr().err


def test_show_counts_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Identity()
    with fastrec.Recorder(model, keep_module=True, sink="run.h5"):
        model(torch.tensor([1.0, float("nan"), float("inf"), 3.0]))
    found = document(capsys, "show", "run.h5", ":out")
    assert isinstance(found, dict)
    numbers = found["statistics"]["activation"]
    assert numbers == {
        **{"count": 4, "mean": 2.0, "std": 1.0, "least": 1.0, "most": 3.0},
        **{"zeros": 0, "nans": 1, "infinite": 1},
    }
    assert found["record"]["activation"] == [1.0, None, None, 3.0]


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int64", "float16", "bfloat16", "float8_e4m3fn", "float64", "complex64", "complex32"],
)
@pytest.mark.filterwarnings("ignore:ComplexHalf support")
def test_show_reads_every_dtype(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Identity()
    with fastrec.Recorder(model, keep_module=True, sink="run.h5"):
        model(torch.ones(2, 3).to(getattr(torch, dtype)))
    assert main(["show", "run.h5", ":out"]) == 0
    assert "6 numbers, mean 1, std 0, from 1 to 1" in capsys.readouterr().out


def test_show_of_ragged_scalar_and_empty_values(capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Identity()
    with fastrec.Recorder(model, keep_module=True, sink="run.h5"):
        for shape in ((3,), (), (0, 4), (2, 2)):
            model(torch.ones(shape))
    assert main(["show", "run.h5", ":out"]) == 0
    assert "8 numbers" in capsys.readouterr().out
    for number in range(4):
        assert main(["show", "run.h5", ":out", "--record", str(number)]) == 0


def test_show_of_contexts_and_transforms(capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU())
    keep = fastrec.predicates.module("0").with_(save_activation=False) | fastrec.predicates.module("1").with_(
        transform=lambda value: value.sum(), save_raw=False
    )
    with fastrec.Recorder(model, keep_module=keep, sink="run.h5", capture=CaptureSpec()):
        model(torch.ones(5))
    assert main(["show", "run.h5", "module:0"]) == 0
    assert "no values were kept here, only contexts" in capsys.readouterr().out
    assert main(["show", "run.h5", "module:1"]) == 0
    out = capsys.readouterr().out
    assert "transformed activation: 1 numbers, mean 5" in out
    assert "\nactivation:" not in out


def test_statistics_do_not_depend_on_where_stretches_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout("run.h5", steps=9)
    whole = document(capsys, "show", "run.h5", "torso")
    monkeypatch.setattr("fastrec._cli._look.READ_BYTES", 50)
    parts = document(capsys, "show", "run.h5", "torso")
    assert isinstance(whole, dict) and isinstance(parts, dict)
    for name, value in whole["statistics"]["activation"].items():
        assert parts["statistics"]["activation"][name] == pytest.approx(value)
