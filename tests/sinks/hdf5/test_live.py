"""Recordings that are read while another process writes them, and ones that go to other processes."""

import copy
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fastrec
from fastrec import Recorder, Recording
from fastrec._errors import DamagedFileError, OptionError, RecordingNotFoundError
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5.live import LiveRecording
from fastrec.sinks.hdf5.reader import ReadFile

PASSES = 120


def write(path: Path, end: str) -> None:
    """Record slowly, for those who watch."""
    model = nn.Identity()
    with Recorder(model, keep_module=True, sink=HDF5Sink(path, flush_seconds=0.05, segment_bytes=1 << 20)) as rec:
        for i in range(PASSES):
            # Some are so large that there are several files, and some shapes come late.
            model(torch.full((100_000 if i % 8 == 3 else 1 + i // 20,), float(i)))
            rec.step(number=i)
            time.sleep(0.01)
        if end == "killed":
            rec.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)


@contextmanager
def writing(path: Path, end: str) -> Iterator[multiprocessing.Process]:
    process = multiprocessing.get_context("fork").Process(target=write, args=(path, end))
    process.start()
    try:
        while not list(path.parent.iterdir()):
            assert process.is_alive()
            time.sleep(0.01)
        yield process
        process.join()
    finally:
        process.kill()
        process.join()


def record_the_time(path: Path) -> None:
    """Record the time, with the options that are the default."""
    model, start = nn.Identity(), time.monotonic()
    with Recorder(model, keep_module=True, sink=path):
        while time.monotonic() - start < 3:
            model(torch.tensor(time.monotonic(), dtype=torch.float64))
            time.sleep(0.01)
    os._exit(0)


def numbers(recording: Recording) -> list[int]:
    """What the values say that they are, each the number of its pass."""
    values = [record.activation for record in recording]
    assert all((value == value[0]).all() for value in values)
    return [int(value[0]) for value in values]


def session(path: Path) -> Recorder:
    return Recorder(nn.Identity(), keep_module=True, sink=HDF5Sink(path, flush_seconds=1000))


@pytest.mark.parametrize("end", ["finished", "killed"])
def test_passes_are_followed_while_another_process_records_them(tmp_path: Path, end: str) -> None:
    with writing(tmp_path / "run.h5", end) as process:
        live = fastrec.load(tmp_path / "run.h5", live=True)
        seen: list[int] = []
        looks = 0
        for new in live.follow(poll=0.02):
            seen += numbers(new)
            looks += process.is_alive()
            assert new.n_passes == len(new) and [r.ctx.pass_index for r in new] == seen[len(seen) - len(new) :]
    assert seen == list(range(PASSES)) and looks > 1
    assert live.state == end
    live.refresh()
    assert numbers(live) == seen and live.steps["number"].tolist() == seen


def test_a_refresh_takes_in_what_was_flushed_and_nothing_else_does(tmp_path: Path) -> None:
    model = nn.Identity()
    with Recorder(model, keep_module=True, sink=HDF5Sink(tmp_path / "run.h5", flush_seconds=1000)) as rec:
        live = fastrec.load(tmp_path / "run.h5", live=True)
        assert isinstance(live, LiveRecording) and (len(live), live.n_passes, live.state) == (0, 0, "growing")
        for i in range(10):
            model(torch.full((2,), float(i)))
            rec.step(number=i)
            rec.flush()
            assert live.n_passes == i and len(live.steps) == i
            part = live.select(passes=slice(0, 3))
            assert live.refresh() == 1 and live.refresh() == 0
            assert numbers(live) == live.steps["number"].tolist() == list(range(i + 1))
            assert len(part) == min(i, 3)
        rows = live.rows("module:")
    assert live.state == "finished" and live.refresh() == 0
    assert rows[3:5][:, 0].tolist() == [3, 4] and numbers(live) == list(range(10))


def test_passes_that_kept_nothing_are_counted(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Identity(), "b": nn.Identity()})
    with Recorder(model, keep_module="a", sink=HDF5Sink(tmp_path / "run.h5", flush_seconds=1000)) as rec:
        live = fastrec.load(tmp_path / "run.h5", live=True)
        for name in "abbab":
            model[name](torch.ones(1))
        rec.flush()
        assert live.refresh() == 5 and len(live) == 2
        model["b"](torch.ones(1))
    assert live.refresh() == 1
    assert [new.n_passes for new in fastrec.load(tmp_path / "run.h5", live=True).follow()] == []


def test_following_stops_when_nothing_comes(tmp_path: Path) -> None:
    with session(tmp_path / "run.h5") as rec:
        live = fastrec.load(tmp_path / "run.h5", live=True)
        rec.log(torch.ones(1))
        rec.flush()
        assert [len(new) for new in live.follow(poll=0.01, timeout=0.1)] == [1]
        assert [len(new) for new in live.follow(poll=0.01, timeout=0.1)] == [1]
        live.refresh()
        assert [len(new) for new in live.follow(poll=0.01, timeout=0.1)] == []


def test_a_look_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with session(tmp_path / "run.h5") as rec:
        for i in range(3000):
            rec.log(torch.ones(1) * i)
        rec.flush()
        live = fastrec.load(tmp_path / "run.h5", live=True)
        rec.log(torch.zeros(1))
        rec.flush()
        asked: list[tuple[str, int]] = []
        rows = ReadFile.rows
        monkeypatch.setattr(ReadFile, "rows", lambda *args: asked.append(args[1:3]) or rows(*args))
        assert live.refresh() == 1 and len(live) == 3001
        assert {first for name, first in asked if name in ("passes", "records")} == {3000}


def test_what_can_not_be_followed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingNotFoundError, match="there is no recording at"):
        fastrec.load(tmp_path / "run.h5", live=True)
    with session(tmp_path / "run.h5") as rec:
        rec.log(torch.ones(1))
        live = fastrec.load(tmp_path / "run.h5", live=True)
    with pytest.raises(OptionError, match="poll=0.: give a number of seconds above 0"):
        live.follow(poll=0)
    with pytest.raises(OptionError, match="timeout='x'.: give a number of seconds above 0"):
        live.follow(timeout="x")  # type: ignore[arg-type]


def recorded(path: Path, passes: int = 20) -> Recording:
    model = nn.Identity()
    with Recorder(model, keep_module=True, sink=HDF5Sink(path, segment_bytes=1 << 20)) as rec:
        for i in range(passes):
            model(torch.full((2, 3), float(i)))
            rec.step(number=i)
    return fastrec.load(path)


def test_copies_hold_what_the_recording_did(tmp_path: Path) -> None:
    with session(tmp_path / "run.h5") as rec:
        for i in range(8):
            rec.log(torch.full((2,), float(i)))
            rec.step(number=i)
        rec.flush()
        recording = fastrec.load(tmp_path / "run.h5")
        live = fastrec.load(tmp_path / "run.h5", live=True)
        originals = (recording, live, recording.select(passes=slice(2, 5)))
        pickled = [(original, pickle.dumps(original)) for original in originals]
        rec.log(torch.full((2,), 8.0))
    for original, text in pickled:
        for copied in (pickle.loads(text), copy.deepcopy(original), copy.copy(original)):
            assert type(copied) is Recording or copied is not live
            assert numbers(copied) == numbers(original) and copied.n_passes == original.n_passes
            assert copied.steps["number"].tolist() == original.steps["number"].tolist()
            assert repr(list(copied)) == repr(list(original))
    assert numbers(pickle.loads(pickled[2][1])) == [2, 3, 4]


def test_a_part_that_was_followed_can_be_pickled(tmp_path: Path) -> None:
    with session(tmp_path / "run.h5") as rec:
        live = fastrec.load(tmp_path / "run.h5", live=True)
        for i in range(3):
            rec.log(torch.full((2,), float(i)))
        rec.flush()
        follow = live.follow(poll=0.01, timeout=0.1)
        first = next(follow)
        for i in range(3, 7):
            rec.log(torch.full((2,), float(i)))
        rec.flush()
        second = pickle.dumps(next(follow))
    assert numbers(first) == [0, 1, 2] and numbers(pickle.loads(second)) == [3, 4, 5, 6]
    assert pickle.loads(second).n_passes == 4


def test_a_copy_is_small(tmp_path: Path) -> None:
    assert len(pickle.dumps(recorded(tmp_path / "run.h5", 500))) < 1000


def test_a_copy_of_a_recording_that_was_replaced_is_an_error(tmp_path: Path) -> None:
    text = pickle.dumps(recorded(tmp_path / "run.h5"))
    (tmp_path / "run.h5").unlink()
    recorded(tmp_path / "run.h5")
    with pytest.raises(DamagedFileError, match="no longer holds what was read from it; was it written again"):
        pickle.loads(text)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_recording(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recording = recorded(Path("run.h5"))
    dataset = recording.to_dataset("module:", by="sample")
    assert len(pickle.dumps(dataset)) < 5000
    batches = recording.iter_batches("module:", 4, by="sample", shuffle=True, buffer_bytes=100)
    loader = DataLoader(batches, batch_size=None, num_workers=1, multiprocessing_context=method)
    assert sorted(torch.cat(list(loader))[:, 0].tolist()) == sorted(list(range(20)) * 2)
    if method == "fork":  # one more interpreter would take seconds to start
        loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context=method)
        assert sorted(torch.cat(list(loader))[:, 0].tolist()) == sorted(list(range(20)) * 2)
        assert float(recording.stack("module:").sum()) == 6 * sum(range(20))


def test_another_process_sees_what_was_recorded_about_a_second_ago(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=record_the_time, args=(tmp_path / "run.h5",))
    process.start()
    while not list(tmp_path.glob("*.map")):
        time.sleep(0.01)
    live = fastrec.load(tmp_path / "run.h5", live=True)
    live.refresh()
    seen, delays = live.n_passes, []
    while live.state == "growing":
        if live.refresh():
            now = time.monotonic()
            delays += [now - float(record.activation) for record in live[seen:]]
            seen = live.n_passes
        time.sleep(0.01)
    process.join()
    print(f"rows were seen {max(delays):.2f} s after they were recorded at worst, {min(delays):.2f} s at best")
    assert live.n_passes == seen > 50 and sorted(delays)[len(delays) // 2] < 1
    assert max(delays) < 2  # most of a second that the machine may be busy with something else
