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
from fastrec._errors import RecordingFileError
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

    def __enter__(self) -> "Killer":
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.sinks.hdf5.killed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return self

    def __exit__(self, *_: object) -> None:
        """End the server, also where a check failed: else it would go on while other tests run."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        try:
            assert self._server.wait(timeout=60) == 0
        finally:
            self._server.kill()
            self._server.wait()

    def kill(self, seed: int) -> str:
        """Kill one recording; whether it was finished by then."""
        path, message = self._folder / f"{seed}.h5", self._folder / f"{seed}.h5{killed.SUFFIX}"
        print(path, seed, sep="\t", file=self._server.stdin, flush=True)
        assert self._server.stdout is not None
        child = int(self._server.stdout.readline())
        while not (message.exists() and message.stat().st_size):
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
        flushed = int(message.read_text())
        message.unlink()
        state = "finished" if path.exists() else "growing"
        self._check(path, flushed, seed)
        recovered = fastrec.recover(path)
        self._check(path, flushed, seed)
        assert recovered.passes > flushed
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
    pass_indices = np.repeat(passes["pass_index"], passes["count"])
    catalog = source.catalog
    for meta in np.unique(records["meta"]).tolist():
        of_meta = np.flatnonzero(records["meta"] == meta)
        name = catalog.site_of(meta).name
        pieces = source.values(records["meta"][of_meta].astype(np.int64), records["row"][of_meta], "activation")
        values = torch.cat([*pieces])
        part = int(name.split(".")[1]) / 64 if name.startswith("parts") else 0.0
        expected = torch.from_numpy(pass_indices[of_meta]).float().reshape(-1, 1, 1) + part
        assert torch.equal(values, expected.expand_as(values))
        assert {killed.rows_of(index) for index in pass_indices[of_meta].tolist()} == {values.shape[1]}
    for index, count in enumerate(passes["count"].tolist()):
        assert count == killed.parts_of(index) + 1
    steps = recording.steps
    if flushed >= 0:
        numbers = steps["number"]
        assert len(numbers) >= flushed and numbers.tolist() == list(range(len(numbers)))
        assert steps["both"].tolist() == [[n, -n] for n in numbers.tolist()]


def test_killed_processes_lose_nothing_that_was_flushed(tmp_path: Path) -> None:
    with Killer(tmp_path) as killer:
        states = {killer.kill(seed) for seed in range(30)}
    assert states == {"growing", "finished"}


@pytest.mark.long
def test_hundreds_of_killed_processes_lose_nothing_that_was_flushed(tmp_path: Path) -> None:
    with Killer(tmp_path) as killer:
        states = [killer.kill(seed) for seed in range(1000, 1300)]
    assert set(states) == {"growing", "finished"}


def last_flushed(printed: str) -> int:
    whole = [line.split() for line in printed[: printed.rfind("\n") + 1].splitlines() if line.startswith("flushed")]
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
    assert process.returncode == 0, errors
    assert "was never closed; everything was flushed." in errors
    assert fastrec.load(tmp_path / "run.h5").n_passes == 100
    assert fastrec.recover(tmp_path / "run.h5").passes == 100


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


def test_a_limit_for_files_is_an_error_that_leaves_what_was_flushed(tmp_path: Path) -> None:
    process = start(tmp_path / "run.h5", FULL)
    printed, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert "the recording stopped: [Errno 27] File too large" in printed
    flushed = last_flushed(printed)
    values = [record.activation for record in fastrec.load(tmp_path / "run.h5")]
    assert len(values) > flushed
    for i, value in enumerate(values[1:], 1):
        assert value is not None and torch.equal(value, torch.full((100_000,), float(i)))


def test_a_file_keeps_to_the_limit_that_the_process_has_when_it_begins(tmp_path: Path) -> None:
    code = FULL.replace("        resource", "        # resource").replace("1000", "120")
    early = "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n    with rec"
    process = start(tmp_path / "run.h5", code.replace("    with rec", early))
    printed, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert "stopped" not in printed
    assert fastrec.load(tmp_path / "run.h5").n_passes == 120


def test_a_full_disk_is_an_error_that_leaves_what_was_flushed() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system, which takes root")
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", folder], capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("may not mount here")
    try:
        process = start(folder / "run.h5", FULL.replace("        resource", "        # resource"))
        printed, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
        assert "No space left on device" in printed
        recording = fastrec.load(folder / "run.h5")
        assert recording.n_passes > last_flushed(printed) > 0
        assert recording[-1].activation is not None
        del recording
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def test_a_folder_that_can_not_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecordingFileError, match="can't be written: No such file or directory"):
        Recorder(torch.nn.Linear(2, 2), keep_op="linear", sink=HDF5Sink(tmp_path / "none" / "run.h5")).__enter__()
    with pytest.raises(RecordingFileError, match="can't be written"):
        Recorder(torch.nn.Linear(2, 2), keep_op="linear", sink="/proc/run.h5").__enter__()
