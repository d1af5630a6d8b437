"""When what was recorded reaches the file, in which order, and what happens when it can't."""

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec._errors import RecordingFileError, RecordingNotFoundError
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5.layout import COUNTERS_ROW
from fastrec.sinks.hdf5.segment import Segment
from fastrec.sinks.hdf5.writer import Writer
from tests.sinks.hdf5.verified import check_checksums

MODEL = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))


def no_space(*_: object, **__: object) -> int:
    raise OSError(28, "No space left on device")


def test_so_many_records_are_flushed_by_themselves(tmp_path: Path) -> None:
    sink = HDF5Sink(tmp_path / "run.h5", flush_rows=10, flush_seconds=1000)
    with Recorder(torch.nn.Identity(), keep_module=True, sink=sink) as rec:
        for _ in range(9):
            rec.log(torch.zeros(2))
        time.sleep(0.1)
        assert sink.statistics()["records_flushed"] == 0
        rec.log(torch.zeros(2))
        until = time.monotonic() + 20
        while sink.statistics()["records_flushed"] < 10 and time.monotonic() < until:
            time.sleep(0.01)
        assert sink.statistics()["records_flushed"] == sink.statistics()["passes_flushed"] == 10
        assert fastrec.load(sink.path).n_passes == 10


def test_passes_that_kept_nothing_take_no_room(tmp_path: Path) -> None:
    sink = HDF5Sink(tmp_path / "run.h5", flush_seconds=0.01)
    with pytest.warns(fastrec.FastrecWarning, match="matched"), torch.no_grad():
        with Recorder(MODEL, keep_op="nosuch", sink=sink) as rec:
            for _ in range(3):
                for _ in range(500):
                    MODEL(torch.zeros(1, 64))
                rec.flush()
                assert fastrec.load(sink.path).n_passes == sink.statistics()["passes_flushed"]
    assert fastrec.load(sink.path).n_passes == 1500
    assert os.path.getsize(sink.path) < 32 * 1024
    with h5py.File(sink.path) as file:
        assert len(file["passes"]) == 0 and max(file["counters"]["begun"]) == 1500


def test_rows_lie_in_their_order_where_a_segment_has_no_room_for_all_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, write = threading.Event(), Writer._write_whole

    def late(writer: Writer, block: Any) -> None:
        """Let the loop end first, so that one batch has many blocks."""
        assert may_write.wait(10)
        write(writer, block)

    monkeypatch.setattr(Writer, "_write_whole", late)
    may_write.set()
    path, dtypes = tmp_path / "run.h5", [torch.float32, torch.float64, torch.int64]
    sink = HDF5Sink(path, segment_bytes=1 << 20, flush_seconds=1e-6)
    with Recorder(torch.nn.Identity(), keep_module=True, sink=sink) as rec:
        for i in range(60):
            for dtype in dtypes:
                rec.log(torch.full((3, 2000), i).to(dtype))
            if not i:  # the first segment is made before anybody knows how much will come
                rec.flush()
                may_write.clear()
        may_write.set()
    assert len(list(tmp_path.iterdir())) > 2
    with h5py.File(path) as file:
        shown = {made.attrs["torch_dtype"]: made[:, 0, 0].tolist() for made in file["data"].values()}
    assert shown == {str(dtype).removeprefix("torch."): list(range(60)) for dtype in dtypes}


def test_what_stopped_the_writer_is_raised_once_more_only_if_nobody_saw_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Identity()
    monkeypatch.setattr("fastrec.sinks.hdf5.layout.os.pwrite", no_space)
    with pytest.raises(RecordingFileError, match="No space left"):
        with Recorder(model, keep_module=True, sink=tmp_path / "run.h5"):
            model(torch.zeros(2))
    with pytest.raises(RecordingNotFoundError, match="there is no recording at"):
        fastrec.load(tmp_path / "other.h5")


def test_a_disk_that_is_full_at_the_end_leaves_all_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Identity()

    def session(name: str, *failing: str) -> None:
        with monkeypatch.context() as patch:
            for function in failing:
                patch.setattr(f"fastrec.sinks.{function}", no_space)
            with Recorder(model, keep_module=True, sink=tmp_path / name):
                for i in range(5):
                    model(torch.full((3,), float(i)))

    session("a.h5", "hdf5.segment.rewrite")  # there is no room for a second copy, so the first is cut down
    with pytest.raises(RecordingFileError, match="the recording stopped: .*No space left"):
        session("b.h5", "hdf5.segment.rewrite", "hdf5.segment.shrink")
    assert (tmp_path / "a.h5").exists() and not (tmp_path / "b.h5").exists()
    for name in ("a.h5", "b.h5"):
        assert fastrec.load(tmp_path / name).stack("module:")[:, 0].tolist() == list(range(5))
        check_checksums(tmp_path / name)


def test_an_error_is_raised_by_the_next_call_and_what_was_flushed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sink = torch.nn.Identity(), HDF5Sink(tmp_path / "run.h5", flush_seconds=1000)
    with Recorder(model, keep_module=True, sink=sink) as rec:
        model(torch.zeros(3))
        rec.flush()
        monkeypatch.setattr("fastrec.sinks.hdf5.layout.os.pwrite", no_space)
        model(torch.ones(3))
        for call in (rec.flush, lambda: model(torch.ones(3)), lambda: rec.step(reward=1), rec.flush):
            with pytest.raises(RecordingFileError, match="the recording stopped: .*No space left"):
                call()
    assert fastrec.load(tmp_path / "run.h5").stack("module:").tolist() == [[0, 0, 0]]


def test_what_was_flushed_counts_in_the_moment_in_which_the_next_segment_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are copied in that moment, which is what a process that is killed then leaves."""
    model = torch.nn.ModuleDict({"kept": torch.nn.Identity(), "other": torch.nn.Identity()})
    growing, left, flushed = tmp_path / "growing", tmp_path / "left", []
    growing.mkdir()
    sink, publish = HDF5Sink(growing / "run.h5", segment_bytes=1 << 20, flush_seconds=1000), Segment.publish

    def publish_and_copy(segment: Segment) -> None:
        publish(segment)
        if segment.number == 1:
            shutil.copytree(growing, left)
            flushed.append(sink.statistics()["passes_flushed"])

    monkeypatch.setattr(Segment, "publish", publish_and_copy)
    with Recorder(model, keep_module="kept", sink=sink) as rec:
        for _ in range(7):
            model["other"](torch.zeros(1))
        while not flushed:
            model["kept"](torch.zeros(100_000))
            rec.flush()
    assert flushed[0] > 7
    assert fastrec.load(left / "run.h5").n_passes >= flushed[0]
    # The segments before count too, where a version before this one left a file without counters.
    with (left / "run.00001.h5.tmp").open("r+b") as file:
        file.seek(offset_of_counters(left / "run.00001.h5.tmp"))
        file.write(bytes(2 * COUNTERS_ROW.itemsize))
    assert fastrec.load(left / "run.h5").n_passes >= flushed[0]


def offset_of_counters(path: Path) -> int:
    with h5py.File(path) as file:
        return int(file["counters"].id.get_chunk_info(0).byte_offset)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_whatever_stops_the_writer_reaches_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """A signal handler or a tool may raise these in any thread; nobody may wait for the writer for ever."""

    def stop(*_: object) -> None:
        raise error

    model = torch.nn.Identity()
    with pytest.raises(RecordingFileError, match=f"the recording stopped: {error.__name__}"):
        with Recorder(model, keep_module=True, sink=tmp_path / "run.h5") as rec:
            model(torch.zeros(2))
            rec.flush()
            monkeypatch.setattr(Writer, "_write_batch", stop)
            model(torch.zeros(2))
            rec.flush()
    assert fastrec.load(tmp_path / "run.h5").n_passes == 1
