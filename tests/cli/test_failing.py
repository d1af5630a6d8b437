"""Bad input: one line that says what to do, an exit code, and never a traceback."""

import os
from pathlib import Path

import h5py
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrec._cli import main
from fastrec._cli._main import COMMANDS
from tests.cli.recorded import rollout

PATH_ONLY = [command.name for command in COMMANDS if command.name in ("info", "ls", "recover", "verify")]
WORDS = [*(command.name for command in COMMANDS), "--json", "--to", "--record", "-1", "", "\0", "a.h5", "*", "x/"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def failed(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = main(argv)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastrec: error: ")
    assert err.count("\n") == 1
    return code, err


@pytest.mark.parametrize("command", PATH_ONLY)
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_missing_file_names_those_that_are_there(
    command: str, form: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rollout.h5").touch()
    code, err = failed(capsys, command, "rolout.h5", *form)
    assert code == 3
    assert "there is no recording at 'rolout.h5'; '.' has 'rollout.h5'" in err


def test_a_missing_folder(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = failed(capsys, "info", "runs/run.h5")
    assert code == 3
    assert "the folder 'runs' can't be read: No such file or directory" in err


@pytest.mark.parametrize("command", PATH_ONLY)
def test_a_folder_without_a_recording(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkdir("runs.h5")
    code, err = failed(capsys, command, "runs.h5")
    assert code == 3
    assert "it is not a regular file; 'runs.h5/' means what is in the folder" in err
    code, err = failed(capsys, command, "runs.h5/")
    assert code == 3
    assert "there is no recording in the folder 'runs.h5/'" in err


@pytest.mark.parametrize("command", PATH_ONLY)
def test_files_that_are_no_recordings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b"", b"\x93NUMPY", b"x" * 5000):
        Path("some.h5").write_bytes(content)
        code, err = failed(capsys, command, "some.h5")
        assert code == 4
        assert "check that it is the right file and was copied completely" in err
    with h5py.File("other.h5", "w") as file:
        file["x"] = [1, 2]
    code, err = failed(capsys, command, "other.h5")
    assert code == 4
    assert "'other.h5' is an HDF5 file, but not a recording of fastrec" in err


def test_another_ending(capsys: pytest.CaptureFixture[str]) -> None:
    Path("model.pt").touch()
    code, err = failed(capsys, "info", "model.pt")
    assert code == 1
    assert "the path 'model.pt' has to end in .h5 or .hdf5" in err


@pytest.mark.parametrize("command", PATH_ONLY)
def test_a_file_that_was_cut_off(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5")
    whole = Path("run.h5").read_bytes()
    for size in (len(whole) // 2, 600):
        Path("run.h5").write_bytes(whole[:size])
        code, err = failed(capsys, command, "run.h5")
        assert code == 4
        assert err.endswith("check that it is the right file and was copied completely\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    rollout("run.h5")
    os.chmod("run.h5", 0)
    code, err = failed(capsys, "info", "run.h5")
    assert code == 3
    assert "'run.h5' can't be read: Permission denied" in err


def test_what_may_not_be_read_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rollout("run.h5")

    def refused(*args: object, **kwargs: object) -> int:
        raise PermissionError(13, "Permission denied", "run.h5")

    monkeypatch.setattr("fastrec.sinks.hdf5.reader.os.open", refused)
    code, err = failed(capsys, "info", "run.h5")
    assert code == 3
    assert "'run.h5' can't be read: Permission denied" in err


@pytest.mark.parametrize(
    "argv", [(), ("inf", "x.h5"), ("info",), ("info", "a.h5", "b.h5"), ("ls", "x.h5", "--sort", "x")]
)
def test_command_lines_that_make_no_sense(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: fastrec")


def test_ctrl_c(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastrec._cli._look.describe", interrupted)
    assert main(["info", "run.h5"]) == 130
    assert capsys.readouterr() == ("", "fastrec: interrupted\n")


def test_names_in_a_file_can_not_talk_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "a\x1b[2J.h5"]) == 3
    assert "\x1b" not in capsys.readouterr().err


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(argv=st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=5))
def test_any_command_line_ends_in_a_code(argv: list[str]) -> None:
    assert main(argv) in (0, 1, 2, 3, 4)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_ends_in_a_code(data: st.DataObject) -> None:
    if not os.path.exists("whole.h5"):
        rollout("whole.h5", steps=3)
    content = bytearray(Path("whole.h5").read_bytes())
    # The HDF5 structure and the trailer are where damage leads astray; values may be anything.
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    Path("run.h5").write_bytes(bytes(content))
    for argv in (["info", "run.h5"], ["ls", "run.h5"], ["show", "run.h5", "torso"]):
        assert main(argv) in (0, 1, 4)


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: fastrec {command} ")
    assert f"example:\n  fastrec {command} " in out
    assert "exit codes:" in out
    assert "--json" in out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command.name}" in out
