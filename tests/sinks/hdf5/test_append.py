"""Sessions that continue a recording, and files that show several as one."""

import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

import fastrec
from fastrec import Recorder, Recording
from fastrec._errors import DamagedFileError, FastrecWarning, OptionError, RecordingExistsError
from fastrec.sinks import HDF5Sink, RAMSink
from tests.sinks.hdf5.verified import check_checksums

MODEL = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh())


def session(path: Path, passes: int, keep: Any = "tanh", phase: str = "run", **options: Any) -> Recording:
    """Record passes that end in a step; the same in RAM."""
    sink = HDF5Sink(path, **options)
    with Recorder(MODEL, keep_op=keep, sink=[RAMSink(), sink]) as rec, rec.phase(phase):
        for i in range(passes):
            rec.log(torch.full((2, 3), float(i)), sample_id=f"{phase}{i}")
            rec.step(reward=float(i))
    return rec.recording


def contents(folder: Path) -> dict[int, bytes]:
    return {path.stat().st_ino: path.read_bytes() for path in folder.iterdir()}


def test_a_session_goes_on_where_the_one_before_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    first = session(path, 5, append=True)  # there is nothing to continue yet
    contents_before = contents(tmp_path)
    second = session(path, 4, ["linear", "tanh"], append=True)
    assert contents_before.items() <= contents(tmp_path).items()
    third = session(path, 3, phase="eval", append=True)
    fourth = session(path, 2, append=True)
    recording, parts = fastrec.load(path), [first, second, third, fourth]
    assert recording.n_passes == 14 and len(recording) == 5 + 8 + 3 + 2
    assert [record.ctx.pass_index for record in recording["1/tanh"]] == list(range(14))
    assert [record.ctx.step for record in recording["1/tanh"]] == [*range(9), 0, 1, 2, 9, 10]
    assert [record.ctx.sample_id for record in recording] == [r.ctx.sample_id for part in parts for r in part]
    assert [record.ctx.label for record in recording] == [r.ctx.label for part in parts for r in part]
    assert torch.equal(recording.stack("1/tanh"), torch.cat([part.stack("1/tanh") for part in parts]))
    assert torch.equal(recording.stack("0/linear"), second.stack("0/linear"))
    assert recording.select(phase="run").steps.step.tolist() == list(range(11))
    assert recording.select(phase="eval").steps["reward"].tolist() == [0, 1, 2]
    started = [record._info.started for record in recording]
    assert started == sorted(started)
    check_checksums(path)


def test_numbers_of_a_session_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    for name in ("a", "b", "a"):
        with Recorder(model, keep_op="linear", sink=HDF5Sink(path, append=True)) as rec, rec.phase(name):
            model[name](torch.zeros(1, 2))
            rec.step(**{name: 1})
    recording = fastrec.load(path)
    assert [(r.ctx.site, r.ctx.entry, r.ctx.entry_pass, r.ctx.phase) for r in recording] == [
        ("a/linear", "a", 0, "a"),
        ("b/linear", "b", 0, "b"),
        ("a/linear", "a", 1, "a"),
    ]
    assert recording.select(phase="a").steps["a"].tolist() == [1, 1]
    assert [record.ctx.recent_ops for record in recording] == [()] * 3


def test_passes_that_kept_nothing_and_failures_and_halts_keep_their_index(tmp_path: Path) -> None:
    def fails(ctx: Any) -> bool:
        if ctx.pass_index == 1:
            raise ValueError("one")
        if ctx.pass_index == 3:
            fastrec.halt("enough")
        return bool(ctx.pass_index == 0)

    path = tmp_path / "run.h5"
    for _ in range(2):
        sink = HDF5Sink(path, append=True)
        with pytest.warns(fastrec.FastrecWarning, match="predicates failed at 2 events"):
            with Recorder(MODEL, keep_op=fails, on_predicate_error="collect", sink=sink) as rec:
                for _ in range(3):
                    MODEL(torch.zeros(1, 3))
                assert rec.log(torch.zeros(1, 3)) is None
    recording = fastrec.load(path)
    assert recording.n_passes == 8 and recording.halted == {3: "enough", 7: "enough"}
    assert [record.ctx.pass_index for record in recording] == [0, 0, 4, 4]
    failures = recording.predicate_failures
    assert [(f.context.pass_index, f.context.site, f.error) for f in failures] == [
        (1, "0/linear", "ValueError: one"),
        (1, "1/tanh", "ValueError: one"),
        (5, "0/linear", "ValueError: one"),
        (5, "1/tanh", "ValueError: one"),
    ]
    assert [event.label for event in failures[3].context.recent_ops] == ["linear_1"]


def test_what_a_killed_session_left_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    killed = tmp_path.parent / f"{tmp_path.name}-killed"
    killed.mkdir()
    with Recorder(MODEL, keep_op="tanh", sink=killed / "run.h5") as rec:
        for i in range(5):
            rec.log(torch.full((2, 3), float(i)))
        rec.flush()
        shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    contents_before = contents(tmp_path)
    with pytest.warns(FastrecWarning, match="left by a process that was killed.*recover.* has finished it, after this"):
        session(path, 3, append=True)
    assert contents_before.items() <= contents(tmp_path).items()
    assert fastrec.load(path).n_passes == 8
    assert not path.exists()
    assert fastrec.recover(path).passes == 8
    assert sorted(name.name for name in tmp_path.iterdir()) == ["run.00000.h5", "run.00001.h5", "run.h5"]
    assert fastrec.load(path).n_passes == 8
    check_checksums(path)


def test_a_recording_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with Recorder(MODEL, keep_op="tanh", sink=path) as rec:
        MODEL(torch.zeros(2, 3))
        rec.flush()
        for options in ({"append": True}, {"overwrite": True}):
            with pytest.raises(RecordingExistsError, match="run.00000.h5.tmp' is being written by another process"):
                session(path, 1, **options)
        with h5py.File(tmp_path / "run.00000.h5.tmp") as file:  # reading is no harm
            assert file["passes"]["ok"][0] == 1
        with pytest.raises(BlockingIOError):
            h5py.File(tmp_path / "run.00000.h5.tmp", "r+")
    assert fastrec.load(path).n_passes == 1
    with pytest.raises(OptionError, match="overwrite removes an earlier recording and append continues it"):
        HDF5Sink(path, append=True, overwrite=True)


def test_another_file_is_not_continued(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(DamagedFileError, match="not a recording of fastrec"):
        session(tmp_path / "run.h5", 1, append=True)
    for name, passes in (("a.h5", 2), ("b.h5", 3)):
        session(tmp_path / name, passes)
        session(tmp_path / name, passes, append=True)
    os.replace(tmp_path / "a.00001.h5", tmp_path / "b.00001.h5")
    with pytest.raises(DamagedFileError, match="b.00001.h5' does not go on where the file before it ended"):
        fastrec.load(tmp_path / "b.h5")
    with pytest.raises(DamagedFileError, match="shows 2 segments, but there are 1"):
        fastrec.load(tmp_path / "a.h5")
