"""What was reported flushed is there, whatever happens to the process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import h5py
import numpy as np
import pytest
import torch

import fastrec
from fastrec import Recorder, Recording
from fastrec._errors import RecordingFileError, RecordingNotFoundError
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5.live import is_alive
from tests.sinks.hdf5 import killed, learning
from tests.sinks.hdf5.verified import check_checksums

ROOT = Path(__file__).parents[3]


def start(path: Path, code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


class Killer:
    """Starts recordings, kills them at random moments, and looks at what is left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reference = learning.Reference()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.sinks.hdf5.killed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def close(self) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        assert self._server.wait() == 0

    def kill(self, seed: int) -> str:
        """Kill one recording; whether it was finished, and by whom it was ended."""
        path, told = self._folder / f"{seed}.h5", self._folder / f"{seed}.h5{killed.SUFFIX}"
        print(path, seed, sep="\t", file=self._server.stdin, flush=True)
        assert self._server.stdout is not None
        child = int(self._server.stdout.readline())
        while not (told.exists() and told.stat().st_size):
            time.sleep(0.002)
        random = Random(-seed)
        until = time.monotonic() + random.choice([0.02, 0.3, 1.0]) * random.random()
        # Some may end by themselves, however busy the machine is.
        while time.monotonic() < until or (seed % 10 == 5 and is_alive(child)):
            time.sleep(0.001)
        os.kill(child, random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        print(file=self._server.stdin, flush=True)
        status = int(self._server.stdout.readline())
        assert status in (0, -signal.SIGKILL, -signal.SIGTERM), status
        flushed = int(told.read_text())
        told.unlink()
        state = "finished" if path.exists() else "growing"
        self._check(path, flushed, seed)
        found = fastrec.recover(path)
        self._check(path, flushed, seed)
        assert found.passes > flushed
        for name in os.listdir(self._folder):
            assert name.endswith(".h5")
            with h5py.File(self._folder / name, "r") as file:
                assert file.attrs["format"] == "fastrec"
            os.unlink(self._folder / name)
        return state

    def _check(self, path: Path, flushed: int, seed: int) -> None:
        """Every pass that was flushed is there bit for bit, and none that is there is wrong."""
        recording = fastrec.load(path)
        check_checksums(path, covered=False)
        assert recording.n_passes > flushed
        if killed.is_rollout(seed):
            self._reference.check(recording, flushed)
        else:
            check(recording, flushed)


def check(recording: Recording, flushed: int) -> None:
    """The values tell which pass and site they are of."""
    source = recording._source
    passes, records = source.passes(), source.records()
    assert passes["pass_index"].tolist() == list(range(len(passes)))
    at = np.repeat(passes["pass_index"], passes["count"])
    catalog = source.catalog
    for meta in np.unique(records["meta"]).tolist():
        here = np.flatnonzero(records["meta"] == meta)
        name = catalog.site_of(meta).name
        pieces = source.values(records["meta"][here].astype(np.int64), records["row"][here], "activation")
        values = torch.cat([*pieces])
        part = int(name.split(".")[1]) / 64 if name.startswith("parts") else 0.0
        expected = torch.from_numpy(at[here]).float().reshape(-1, 1, 1) + part
        assert torch.equal(values, expected.expand_as(values))
        assert {killed.rows_of(index) for index in at[here].tolist()} == {values.shape[1]}
    for index, count in enumerate(passes["count"].tolist()):
        assert count == killed.parts_of(index) + 1
    steps = recording.steps
    if flushed >= 0:
        numbers = steps["number"]
        assert len(numbers) >= flushed and numbers.tolist() == list(range(len(numbers)))
        assert steps["both"].tolist() == [[n, -n] for n in numbers.tolist()]


def test_killed_processes_lose_nothing_that_was_flushed(tmp_path: Path) -> None:
    killer = Killer(tmp_path)
    states = {killer.kill(seed) for seed in range(30)}
    killer.close()
    assert states == {"growing", "finished"}


@pytest.mark.long
def test_hundreds_of_killed_processes_lose_nothing_that_was_flushed(tmp_path: Path) -> None:
    killer = Killer(tmp_path)
    states = [killer.kill(seed) for seed in range(1000, 1300)]
    killer.close()
    assert set(states) == {"growing", "finished"}


def last_flushed(told: str) -> int:
    whole = [line.split() for line in told[: told.rfind("\n") + 1].splitlines() if line.startswith("flushed")]
    return int(whole[-1][1]) if whole else -1


CODE = """
import os, sys, torch, fastrec
from fastrec.sinks import HDF5Sink
model = torch.nn.Linear(3, 3)
with fastrec.Recorder(model, keep_op="linear", sink=HDF5Sink(sys.argv[1])) as rec:
    for i in range(100):
        model(torch.zeros(2, 3))
        if i == 49:
            rec.flush()
    {end}
"""


def run(path: Path, end: str) -> "subprocess.Popen[str]":
    process = start(path, CODE.format(end=end))
    process.communicate()
    return process


def test_a_process_that_exits_at_once_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    assert run(tmp_path / "run.h5", "os._exit(3)").returncode == 3
    assert fastrec.load(tmp_path / "run.h5").n_passes >= 50


@pytest.mark.parametrize("end", ["raise SystemError", "sys.exit(1)", "raise KeyboardInterrupt"])
def test_a_loop_left_by_an_exception_loses_nothing(tmp_path: Path, end: str) -> None:
    assert run(tmp_path / "run.h5", end).returncode != 0
    assert os.listdir(tmp_path) == ["run.h5"]
    assert fastrec.load(tmp_path / "run.h5").n_passes == 100


def test_a_recorder_that_is_never_closed_does_not_keep_the_process(tmp_path: Path) -> None:
    code = CODE.replace("with fastrec", "rec = fastrec").replace(" as rec:", ".__enter__()").replace("\n    ", "\n")
    process = start(tmp_path / "run.h5", code.replace("\n    rec.flush", "\n        rec.flush").format(end="pass"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode != -signal.SIGSEGV, errors


FULL = """
import resource, signal, sys, torch, fastrec
from fastrec.sinks import HDF5Sink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = torch.nn.Identity()
rec = fastrec.Recorder(model, keep_module=True, sink=HDF5Sink(sys.argv[1], flush_seconds=0.05))
limit = 40_000_000
flushed = 0
try:
    with rec:
        model(torch.zeros(1))
        rec.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for i in range(1, 1000):
            model(torch.full((100_000,), float(i)))
            rec.flush()
            flushed = i
except fastrec.FastrecError as error:
    assert isinstance(error, OSError), error
    print(error)
print("flushed", flushed)
"""


def test_a_limit_for_files_is_told_and_leaves_what_was_flushed(tmp_path: Path) -> None:
    process = start(tmp_path / "run.h5", FULL)
    told, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert "the recording stopped: [Errno 27] File too large" in told
    flushed = last_flushed(told)
    values = [record.activation for record in fastrec.load(tmp_path / "run.h5")]
    assert len(values) > flushed
    for i, value in enumerate(values[1:], 1):
        assert value is not None and torch.equal(value, torch.full((100_000,), float(i)))


def test_a_file_fits_the_limit_that_is_there_at_its_start(tmp_path: Path) -> None:
    code = FULL.replace("        resource", "        # resource").replace("1000", "120")
    early = "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n    with rec"
    process = start(tmp_path / "run.h5", code.replace("    with rec", early))
    told, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert "stopped" not in told
    assert fastrec.load(tmp_path / "run.h5").n_passes == 120


def test_a_full_disk_is_told_and_leaves_what_was_flushed() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system, which takes root")
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", folder], capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("may not mount here")
    try:
        process = start(folder / "run.h5", FULL.replace("        resource", "        # resource"))
        told, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
        assert "No space left on device" in told
        recording = fastrec.load(folder / "run.h5")
        assert recording.n_passes > last_flushed(told) > 0
        assert recording[-1].activation is not None
        del recording
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def test_a_folder_that_can_not_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecordingFileError, match="can't be written: No such file or directory"):
        Recorder(torch.nn.Linear(2, 2), keep_op="linear", sink=HDF5Sink(tmp_path / "none" / "run.h5")).__enter__()
    with pytest.raises(RecordingFileError, match="can't be written"):
        Recorder(torch.nn.Linear(2, 2), keep_op="linear", sink="/proc/run.h5").__enter__()


def test_what_stopped_the_writer_is_raised_once_more_only_if_nobody_saw_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Identity()
    monkeypatch.setattr("fastrec.sinks.hdf5.layout.os.pwrite", _no_space)
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
                patch.setattr(f"fastrec.sinks.{function}", _no_space)
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
        monkeypatch.setattr("fastrec.sinks.hdf5.layout.os.pwrite", _no_space)
        model(torch.ones(3))
        for call in (rec.flush, lambda: model(torch.ones(3)), lambda: rec.step(reward=1), rec.flush):
            with pytest.raises(RecordingFileError, match="the recording stopped: .*No space left"):
                call()
    assert fastrec.load(tmp_path / "run.h5").stack("module:").tolist() == [[0, 0, 0]]


def _no_space(*_: object, **__: object) -> int:
    raise OSError(28, "No space left on device")


def test_memory_that_waits_for_the_disk_is_bounded_even_within_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.pwrite

    def slowly(*given: object) -> int:
        time.sleep(0.001)
        return written(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("fastrec.sinks.hdf5.layout.os.pwrite", slowly)
    model, most = torch.nn.Identity(), 0
    sink = HDF5Sink(tmp_path / "run.h5", queue_bytes=1 << 20)
    with Recorder(model, keep_module=True, sink=sink) as rec:
        with rec.region():
            for i in range(300):
                model(torch.full((50_000,), float(i)))
                most = max(most, sink.statistics()["bytes_waiting"])
    assert (1 << 20) <= most <= 2 << 20
    assert sink.statistics()["waits"] > 0
    assert fastrec.load(tmp_path / "run.h5").stack("module:")[:, 0].tolist() == list(range(300))
