"""What the files of a recording are called, and who may write them."""

import errno
import fcntl
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec._errors import OptionError, RecordingFileError
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5 import paths
from fastrec.sinks.hdf5.paths import Paths, rename_to_free

MODEL = torch.nn.Identity()


def record(sink: HDF5Sink, passes: int = 1) -> None:
    with Recorder(MODEL, keep_module=True, sink=sink) as rec:
        for i in range(passes):
            MODEL(torch.full((40_000,), float(i)))
            if i % 4 == 0:
                rec.flush()


def test_paths_are_those_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = HDF5Sink("run.{rank}.h5")
    with pytest.raises(OptionError, match=r"asks for \{rank\}, which nothing tells.*set RANK, or give a folder"):
        record(sink)
    monkeypatch.setenv("RANK", "3")
    sink = HDF5Sink(tmp_path / "run.{rank}.{pid}.{worker}.h5")
    assert Path(sink.path).name == f"run.3.{os.getpid():07d}.0.h5"
    monkeypatch.setenv("RANK", "4")
    record(sink)
    assert Path(sink.path).name == f"run.4.{os.getpid():07d}.0.h5"
    with h5py.File(sink.path) as file:
        assert (file.attrs["rank"], file.attrs["pid"], file.attrs["session"]) == (4, os.getpid(), 0)
    (tmp_path / "{rank}").mkdir()
    monkeypatch.chdir(tmp_path / "{rank}")
    assert HDF5Sink("a{{b}}.h5").path == str(tmp_path / "{rank}" / "a{b}.h5")


def test_a_relative_path_is_settled_when_the_sink_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trial").mkdir()
    record(HDF5Sink(tmp_path / "trial" / "run.h5"), passes=3)
    monkeypatch.chdir(tmp_path)
    sink = HDF5Sink("run.h5", segment_bytes=1 << 20)
    with Recorder(MODEL, keep_module=True, sink=sink) as rec:
        for i in range(12):
            MODEL(torch.full((40_000,), float(i)))
            rec.flush()
            if i == 2:
                monkeypatch.chdir("trial")
                recording, live = fastrec.load("../run.h5"), fastrec.load("../run.h5", live=True)
            if i == 5:
                monkeypatch.chdir(tmp_path)
    assert sorted(os.listdir("trial")) == ["run.h5"] and fastrec.load("trial/run.h5").n_passes == 3
    assert fastrec.load("run.h5").n_passes == 12 and sink.path == str(tmp_path / "run.h5")
    live.refresh()
    assert (len(live), len(pickle.loads(pickle.dumps(live))), len(recording)) == (12, 12, 3)


@pytest.mark.parametrize("segment_bytes", [1 << 20, 1 << 30])
def test_a_file_that_appears_while_another_is_recorded_is_not_replaced(tmp_path: Path, segment_bytes: int) -> None:
    path = tmp_path / "run.h5"
    record(HDF5Sink(tmp_path / "other.h5"))
    with pytest.raises(RecordingFileError, match=r"run.h5' (appeared while this was|is not part of).*left alone"):
        with Recorder(MODEL, keep_module=True, sink=HDF5Sink(path, segment_bytes=segment_bytes)) as rec:
            for i in range(12):
                MODEL(torch.full((40_000,), float(i)))
                rec.flush()
            (tmp_path / "other.h5").rename(path)
    assert fastrec.load(path).n_passes == 1
    path.rename(tmp_path / "other.h5")  # as the message says
    assert fastrec.recover(path).passes == fastrec.load(path).n_passes == 12


def test_a_file_that_was_removed_while_it_is_written_is_an_error_at_the_next_flush(tmp_path: Path) -> None:
    with pytest.raises(RecordingFileError, match="00000.h5.tmp' was removed, renamed or replaced while it was"):
        with Recorder(MODEL, keep_module=True, sink=HDF5Sink(tmp_path / "run.h5")) as rec:
            for i in range(3):
                MODEL(torch.full((4,), float(i)))
                rec.flush()
                shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("run.zip", "has to end in .h5 or .hdf5"),
        ("run.{step}.h5", r"has the field {step}; the fields are {rank}, {pid}, {worker}, {host}"),
        ("run.{rank:05d}.h5", r"has the field {rank}.*without a format"),
        ("run.{.h5", "makes no sense as a pattern"),
        ("run.00001.h5", "is what a segment of 'run.h5' would be called"),
    ],
)
def test_paths_that_are_not_allowed(path: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        HDF5Sink(path)


def test_a_file_system_without_locks_needs_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fastrec.sinks.hdf5.system.fcntl.flock", refuse)
    with pytest.raises(RecordingFileError, match="has no locks; give HDF5Sink\\(..., locking=False\\)"):
        record(HDF5Sink(tmp_path / "run.h5"))
    assert not list(tmp_path.iterdir())
    record(HDF5Sink(tmp_path / "run.h5", locking=False))
    assert fastrec.load(tmp_path / "run.h5").n_passes == 1


@contextmanager
def locked_exclusively(path: Path, seconds: float) -> Iterator[None]:
    """For some seconds another descriptor has an exclusive lock, as a reader has it that looks who writes."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    timer = threading.Timer(seconds, fcntl.flock, (descriptor, fcntl.LOCK_UN))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        os.close(descriptor)


def test_a_file_is_locked_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a look at the lock could come between the two, and the recorder would have to wait for the reader."""
    renamed = []

    def rename(path: str, target: str) -> None:
        with open(path, "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        renamed.append(target)
        rename_to_free(path, target)

    monkeypatch.setattr(paths, "rename_to_free", rename)
    descriptor = Paths(tmp_path / "run.h5").claim(0, locking=True)
    path = str(tmp_path / "run.00000.h5.tmp")
    assert renamed == [path] == Paths(tmp_path / "run.h5").files() and Paths(tmp_path / "run.h5").locked_file() == path
    os.close(descriptor)
    assert Paths(tmp_path / "run.h5").locked_file() is None


def test_a_reader_that_stops_in_the_middle_of_its_look_does_not_stop_a_recorder(tmp_path: Path) -> None:
    """It keeps the lock of a file that a killed process left; the recorder that continues it has a file of its own."""
    (tmp_path / "run.00000.h5.tmp").touch()
    with locked_exclusively(tmp_path / "run.00000.h5.tmp", 60):
        os.close(Paths(tmp_path / "run.h5").claim(1, locking=True))


def test_at_each_moment_of_a_session_a_file_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two segments too: else another process could take the recording for one that nobody writes."""
    path, states = tmp_path / "run.h5", []
    replaced = Paths.remove_in_progress

    def remove_in_progress(self: Paths, number: int) -> None:
        replaced(self, number)
        states.append(Paths(path).locked_file() is not None)

    monkeypatch.setattr(Paths, "remove_in_progress", remove_in_progress)
    record(HDF5Sink(path, segment_bytes=1 << 20), passes=60)
    assert states[:-1] == [True] * (len(states) - 1) and len(states) > 3 and not states[-1]


def test_readers_that_look_who_writes_do_not_take_each_other_for_a_writer(tmp_path: Path) -> None:
    with locked_exclusively(tmp_path / "run.00000.h5.tmp", 0.1):
        assert Paths(tmp_path / "run.h5").locked_file() is None


def look_all_the_time(path: Path) -> None:
    while not path.exists():
        Paths(path).locked_file()
    os._exit(0)


def test_a_session_of_many_segments_is_recorded_while_others_look_all_the_time(tmp_path: Path) -> None:
    path, fork = tmp_path / "run.h5", multiprocessing.get_context("fork")
    lookers = [fork.Process(target=look_all_the_time, args=(path,)) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        record(HDF5Sink(path, segment_bytes=1 << 20), passes=400)
        assert len(list(tmp_path.glob("run.0*.h5"))) > 10
        assert fastrec.load(path).stack("module:")[:, 0].tolist() == list(range(400))
    finally:
        for looker in lookers:
            looker.kill()
            looker.join()


WITHOUT_UNIX = """
import os, sys, h5py, torch
path, target = sys.argv[1:]
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("fork", "register_at_fork", "pread", "preadv", "pwrite", "fdatasync", "O_CLOEXEC", "SEEK_DATA", "kill"):
    delattr(os, name)
os.O_BINARY = 0
sys.platform = "win32"
import fastrec
from fastrec.files import merge, repack, verify
from fastrec.graph import log_forward_pass, validate_saved_activations
from fastrec.sinks import HDF5Sink

model, x = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()), torch.ones(1, 2)
with fastrec.Recorder(model, keep_module=True, keep_op="tanh") as rec:
    model(x)
print(len(rec.recording), rec.recording.stack("1").shape)
history = log_forward_pass(model, x)
print(len(history.operations) > 2, bool(validate_saved_activations(model, x)))
recording = fastrec.load(path)
print(recording.n_passes, recording.stack("1").shape, len(list(recording)))
print(torch.equal(torch.cat([r.activation for r in recording["1"]]), recording.stack("1").flatten(0, 1)))
print(verify(path).damage)
for write in (
    lambda: HDF5Sink("run.h5"), lambda: fastrec.Recorder(model, keep_module=True, sink=target).start(),
    lambda: fastrec.recover(path), lambda: repack(path, target), lambda: merge([path, path], target),
):
    try:
        write()
    except fastrec.FastrecError as error:
        print(error)
"""


@pytest.mark.parametrize("segment_bytes", [1 << 20, 1 << 30], ids=["some segments", "one file"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_without_what_windows_lacks_everything_runs_but_writing_files(
    segment_bytes: int, compression: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    model = torch.nn.Sequential(torch.nn.Linear(2, 1000), torch.nn.Tanh())
    sink = HDF5Sink(path, segment_bytes=segment_bytes, compression=compression)
    with fastrec.Recorder(model, keep_module=True, sink=sink):
        for _ in range(400):
            model(torch.randn(1, 2))
    command = [sys.executable, "-c", WITHOUT_UNIX, str(path), str(tmp_path / "target.h5")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:5] == [
        "4 torch.Size([1, 1, 3])",
        "True True",
        "400 torch.Size([400, 1, 1000]) 1200",
        "True",
        "[]",
    ]
    assert len(lines) == 10 and all("which Windows lacks; record into RAM, or run under WSL" in x for x in lines[5:])
    assert not (tmp_path / "target.h5").exists()
