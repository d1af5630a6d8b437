"""Folders of recordings, read as one: finished, growing, abandoned and damaged files together."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec._errors import (
    DamagedFileError,
    FastrecWarning,
    OptionError,
    RaggedError,
    RecordingFileError,
    RecordingNotFoundError,
    RecordKeyError,
)
from fastrec.files import describe, merge, verify
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5 import paths
from fastrec.sinks.hdf5.segment import Segment

MODEL = torch.nn.Identity()


def write(folder: Path, rank: int | None, value: float, passes: int = 2, **options: Any) -> Path:
    """Record passes of which each has a value; the new file."""
    before = set(folder.glob("*.h5")) if folder.exists() else set()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RANK", raising=False)
        if rank is not None:
            patch.setenv("RANK", str(rank))
        with Recorder(MODEL, keep_module=True, sink=HDF5Sink(f"{folder}/", **options)) as rec:
            for i in range(passes):
                MODEL(torch.full((2,), value + i))
                rec.step(reward=float(i))
    (new,) = set(folder.glob("*.h5")) - before
    return new


def first_values(recording: fastrec.Recording) -> list[float]:
    values: list[float] = recording.stack(":out")[:, 0].tolist()
    return values


def test_a_folder_a_list_and_a_glob_are_read_as_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    second, first = write(run, 1, 10.0), write(run, 0, 0.0)
    for path in (run, f"{run}/", [second, first], f"{run}/main.*.h5", [f"{run}/*.0.*.h5", second], str(run / "*")):
        recording = fastrec.load(path)
        assert (recording.n_passes, first_values(recording)) == (4, [0.0, 1.0, 10.0, 11.0])
        assert {rank: first_values(part) for rank, part in recording.ranks.items()} == {0: [0, 1], 1: [10, 11]}
    assert first_values(fastrec.load(str(run / "*.1.*.h5"))) == [10.0, 11.0]
    assert first_values(pickle.loads(pickle.dumps(fastrec.load(run)))) == [0.0, 1.0, 10.0, 11.0]


def test_a_folder_holds_finished_growing_and_abandoned_files(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, 0, 0.0)
    rec = Recorder(MODEL, keep_module=True, sink=f"{run}/")
    with rec:
        MODEL(torch.full((2,), 5.0))
        rec.flush()
        killed = tmp_path / "killed"
        shutil.copytree(run, killed)
        unflushed = Recorder(MODEL, keep_module=True, sink=HDF5Sink(f"{run}/", flush_seconds=1000))
        with unflushed, rec.pause():
            MODEL(torch.full((2,), 9.0))
            assert first_values(fastrec.load(run)) == [0.0, 1.0, 5.0]
    assert first_values(fastrec.load(run)) == [0.0, 1.0, 5.0, 9.0]
    assert first_values(fastrec.load(killed)) == [0.0, 1.0, 5.0]
    assert fastrec.load(killed, live=True).state == "growing"  # the process that wrote it lives


def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, 0, 0.0)
    damaged = write(run, 1, 10.0)
    write(run, 2, 20.0)
    os.truncate(damaged, 100)
    (run / "notes.txt").write_text("not a recording")
    with pytest.warns(FastrecWarning, match=damaged.name):
        recording = fastrec.load(run)
    assert first_values(recording) == [0.0, 1.0, 20.0, 21.0]
    with pytest.warns(FastrecWarning, match=damaged.name):
        live = fastrec.load(run, live=True)
    assert first_values(live) == [0.0, 1.0, 20.0, 21.0]
    with pytest.raises(DamagedFileError, match=damaged.name):
        fastrec.load(f"{run}/*.1.*.h5")


def test_gaps_and_mixtures_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("WORLD_SIZE", "3")
    first = write(run, 0, 0.0)
    write(run, 2, 20.0)
    with pytest.warns(FastrecWarning, match="of 3 ranks, 1 have no recording here: 1"):
        fastrec.load(run)
    write(run, 1, 10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(fastrec.load(run).ranks) == [0, 1, 2]
    shutil.copyfile(first, run / "again.h5")
    with pytest.warns(FastrecWarning, match="is a copy of .*, and is left out"):
        assert fastrec.load(run).n_passes == 6
    os.unlink(run / "again.h5")
    monkeypatch.setenv("WORLD_SIZE", "2")
    write(run, 0, 5.0)
    with pytest.warns(FastrecWarning, match=r"worlds of 2 processes \(1 files\) and 3 processes \(3 files\)"):
        assert fastrec.load(run).n_passes == 8


def test_what_was_merged_of_a_folder_is_not_read_twice(tmp_path: Path) -> None:
    run = tmp_path / "run"
    paths = [write(run, rank, 10.0 * rank) for rank in range(2)]
    merge(paths, run / "all.h5")
    merge(paths, run / "shown.h5", virtual=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fastrec.load(run).n_passes == 4
        assert fastrec.load(run / "shown.h5").n_passes == 4
    os.unlink(paths[0])
    with pytest.warns(FastrecWarning, match="all.h5' was merged of recordings that are not among these"):
        assert fastrec.load(run).n_passes == 2


def test_files_whose_steps_mean_something_else_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, 0, 0.0)
    other = write(run, 1, 0.0)
    with Recorder(MODEL, keep_module=True, sink=f"{run}/", autoreset="next_step"):
        MODEL(torch.ones(2))
    with pytest.raises(OptionError, match="autoreset='next_step'.*give a list of those that go together"):
        fastrec.load(run)
    assert fastrec.load([f"{run}/main.0.*", other]).n_passes == 4


def test_a_place_without_recordings_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for path, message in {
        f"{tmp_path}/none/": "there is no folder",
        f"{tmp_path}/run": "there is no recording in the folder",
        f"{tmp_path}/*.h5": "there is no recording that matches",
    }.items():
        with pytest.raises(RecordingNotFoundError, match=message):
            fastrec.load(path)
    with pytest.raises(RecordingNotFoundError, match="the list of recordings is empty"):
        fastrec.load([])


def test_a_live_folder_takes_in_files_that_appear_later(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = (Recorder(MODEL, keep_module=True, sink=f"{run}/") for _ in range(2))
    with first:
        MODEL(torch.full((2,), 1.0))
        first.flush()
        live = fastrec.load(run, live=True)
        assert (live.n_passes, live.state) == (1, "growing")
        news = live.follow(poll=0.01, timeout=5)
        with second, first.pause():
            MODEL(torch.full((2,), 2.0))
            second.flush()
            assert live.n_passes == 1
            assert first_values(next(news)) == [2.0]
            assert live.refresh() == 1
            assert sorted(first_values(live)) == [1.0, 2.0]
        MODEL(torch.full((2,), 3.0))
        first.flush()
        assert first_values(next(news)) == [3.0]
    assert list(news) == []
    live.refresh()
    assert (live.state, sorted(first_values(live))) == ("finished", [1.0, 2.0, 3.0])


def test_processes_are_chosen_by_rank_worker_and_role(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, 1, 10.0)
    write(run, 1, 20.0)  # the second attempt of a process that was restarted
    write(run, 0, 0.0, passes=3)
    write(run, None, 30.0, role="learner")
    recording = fastrec.load(run)
    assert list(recording.ranks) == [0, 1]
    assert first_values(recording.ranks[0]) == [0.0, 1.0, 2.0]
    assert first_values(recording.ranks[1]) == first_values(recording.select(rank=1)) == [10.0, 11.0, 20.0, 21.0]
    assert len(recording.ranks[1].steps) == 4
    assert first_values(recording.select(role="learn*")) == [30.0, 31.0]
    assert first_values(recording.select(role="main", rank=[0, 1])) == [0.0, 1.0, 2.0, 10.0, 11.0, 20.0, 21.0]
    assert first_values(recording.select(passes=range(3, 9)).select(rank=1)) == [10.0, 11.0, 20.0, 21.0]
    assert recording.select(rank=0, worker=-1).n_passes == 3
    assert [process.role for process in recording.processes] == ["main"] * 3 + ["learner"]
    with pytest.raises(RecordKeyError, match=r"select\(rank=7\): no process has it; there are \[-1, 0, 1\]"):
        recording.select(rank=7)
    with pytest.raises(OptionError, match=r"select\(rank='0'\): give a number"):
        recording.select(rank="0")  # type: ignore[arg-type]
    with pytest.raises(RecordKeyError, match=r"by rank 7; there are \[0, 1\]"):
        recording.ranks[7]
    with pytest.raises(RecordKeyError, match="one process made this recording"):
        fastrec.load(next(run.glob("learner*"))).select(rank=0)


def test_steps_of_one_phase_are_joined_by_rank_and_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, 1, 10.0, passes=3)
    write(run, 0, 0.0)
    recording = fastrec.load(run)
    aligned = recording.to_xarray(":out", by="step")
    assert list(zip(aligned["rank"].values.tolist(), aligned["step"].values.tolist(), strict=True)) == [
        *((0, 0), (0, 1)),
        *((1, 0), (1, 1), (1, 2)),
    ]
    assert aligned[":out"].values[:, 0].tolist() == [0.0, 1.0, 10.0, 11.0, 12.0]
    assert aligned["reward"].values.tolist() == [0.0, 1.0, 0.0, 1.0, 2.0]
    assert recording.to_xarray(":out")["rank"].values.tolist() == [0, 0, 1, 1, 1]
    assert recording.to_pandas()["rank"].tolist() == [0, 0, 1, 1, 1]
    assert recording.to_tensordict(":out", by="step").batch_size == (5,)
    with Recorder(MODEL, keep_module=True, sink=f"{run}/") as rec:
        MODEL(torch.ones(3))
        rec.step(reward=1.0)
    with pytest.raises(RaggedError, match=r"has values of other shapes.*select\(rank=...\)"):
        fastrec.load(run).to_xarray(":out", by="step")
    assert fastrec.load(run).select(rank=[0, 1]).to_xarray(":out", by="step").sizes["step"] == 5


def test_episodes_say_whose_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        with Recorder(MODEL, keep_module=True, sink=f"{tmp_path}/run/") as rec:
            for i in range(4):
                MODEL(torch.full((1, 2), 10.0 * rank + i))
                rec.step(terminated=i == 1 + rank, truncated=False)
    episodes = fastrec.load(tmp_path / "run").episodes()
    assert [(episode.rank, episode.length) for episode in episodes] == [(0, 2), (0, 2), (1, 3), (1, 1)]
    assert episodes[2][":out"][:, 0].tolist() == [10.0, 11.0, 12.0]


def test_files_of_a_folder_are_described_verified_recovered_and_merged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, 0, 0.0)
    with Recorder(MODEL, keep_module=True, sink=f"{run}/") as rec:
        MODEL(torch.full((2,), 5.0))
        rec.flush()
        copy = tmp_path / "copy"
        shutil.copytree(run, copy)
        assert "is being written" in fastrec.recover(run).lost
    assert verify(copy).damage == []
    assert (describe(copy).finished, describe(copy).ranks, len(describe(copy).processes)) == (False, [0], 2)
    recovered = fastrec.recover(copy)
    assert recovered.passes == 3
    assert "what ran after pass 0, if anything did" in recovered.lost
    assert describe(copy).finished
    assert merge([copy], tmp_path / "all.h5").passes == 3
    assert first_values(fastrec.load(tmp_path / "all.h5")) == [0.0, 1.0, 5.0]
    damaged = next(copy.glob("main.0.*"))
    os.truncate(damaged, 100)
    (damage,) = verify(copy).damage
    assert damaged.name in damage.why
    assert [damaged.name in loss for loss in describe(copy).losses] == [True]
    rescued = fastrec.recover(copy, to=tmp_path / "rescued")
    assert (rescued.passes, damaged.name in rescued.lost) == (1, True)
    assert fastrec.load(tmp_path / "rescued").n_passes == 1


def test_a_second_attempt_of_a_rank_is_merged_into_the_rank(tmp_path: Path) -> None:
    paths = [write(tmp_path / "run", rank, value) for rank, value in ((1, 10.0), (1, 20.0), (0, 0.0))]
    assert merge(paths, tmp_path / "all.h5", virtual=False).ranks == [0, 1, 1]
    ranks = fastrec.load(tmp_path / "all.h5").ranks
    assert {rank: part.n_passes for rank, part in ranks.items()} == {0: 2, 1: 4}


@pytest.mark.parametrize("path", [3, None, b"run/", ["run/", 5]])
def test_what_is_no_path_is_refused(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "run", 0, 0.0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="is no path; give that of a recording, a folder, a glob, or a list"):
        fastrec.load(path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecordingNotFoundError, match=r"there is no folder '.*notes.txt/'; '.*notes.txt' is a file"):
        fastrec.load(f"{tmp_path}/notes.txt/")
    with pytest.raises(RecordingFileError, match=r"notes.txt/' can't be made, because there is a file of that name"):
        with Recorder(MODEL, keep_module=True, sink=f"{tmp_path}/notes.txt/"):
            MODEL(torch.zeros(2))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_of_a_newer_format_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, 0, 0.0)
    newer = write(run, 1, 10.0)
    with h5py.File(newer, "r+") as file:
        file.attrs["version"] = 99
    with pytest.warns(FastrecWarning, match=rf"{newer.name}.*has version 99; this fastrec reads 1, so update it"):
        recording = fastrec.load(run)
    assert first_values(recording) == [0.0, 1.0]
    assert newer.name in describe(run).losses[0]


def test_a_full_disk_at_one_worker_leaves_the_others_and_what_it_had_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    write(run, 0, 0.0)
    monkeypatch.setenv("RANK", "1")
    rec = Recorder(MODEL, keep_module=True, sink=f"{run}/")
    with pytest.raises(RecordingFileError, match="No space left on device"), rec:
        MODEL(torch.full((2,), 10.0))
        rec.flush()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Segment, "append", no_space)
            MODEL(torch.full((2,), 11.0))
            rec.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastrecWarning)  # that it was not finished
        assert first_values(fastrec.load(run)) == [0.0, 1.0, 10.0]
        assert describe(run).passes == 3


FEW_DESCRIPTORS = """
import resource, sys, torch, fastrec.files
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
recording = fastrec.load(sys.argv[1])
print(recording.n_passes, int(recording.stack(":out").sum()), fastrec.files.describe(sys.argv[1]).passes)
"""


def test_few_descriptors_lose_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for rank in range(100):
        write(run, rank, float(rank), 1)
    program = [sys.executable, "-W", "error", "-c", FEW_DESCRIPTORS, str(run)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.stdout.split() == ["100", str(2 * sum(range(100))), "100"], done.stderr


@pytest.mark.parametrize("read", [fastrec.load, describe, lambda path: fastrec.load(path, live=True)])
def test_no_descriptor_left_is_an_error_and_no_loss(
    read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    paths_written = [str(write(run, rank, float(rank))) for rank in range(2)]
    os.unlink(run / ".fastrec-index.json")
    open_to_read = paths.open_to_read

    def refuse(path: str) -> int:
        if path == paths_written[1]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return open_to_read(path)

    monkeypatch.setattr(paths, "open_to_read", refuse)
    with pytest.raises(RecordingFileError, match="raise the limit"):
        read(run)


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
