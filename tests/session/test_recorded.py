"""A module that records itself in the processes of a DataLoader, of a pool and of ``datasets.map``."""

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import fastrec
from fastrec import Recorded
from fastrec._errors import OptionError

ROOT = Path(__file__).parents[2]


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())


def value(i: int) -> torch.Tensor:
    return torch.full((4,), float(i))


class Data(Dataset[torch.Tensor]):
    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> torch.Tensor:
        with torch.no_grad():
            return self.recorded(value(i))  # type: ignore[no-any-return]


def rows(recording: fastrec.Recording) -> list[list[float]]:
    kept: list[list[float]] = recording.stack("1/tanh").tolist()
    return sorted(kept)


def expected(times: int = 1) -> list[list[float]]:
    with torch.no_grad():
        return sorted(model()(value(i)).tolist() for i in range(12) for _ in range(times))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_a_data_loader_record_all_epochs(tmp_path: Path, method: str, persistent: bool) -> None:
    recorded = Recorded(model(), sink=f"{tmp_path}/run/", keep_op="tanh")
    loader = DataLoader(
        Data(recorded), num_workers=2, batch_size=2, multiprocessing_context=method, persistent_workers=persistent
    )
    for _ in range(2):
        assert sum(len(batch) for batch in loader) == 12
    del loader
    gc.collect()
    recording = fastrec.load(tmp_path / "run")
    assert rows(recording) == expected(times=2)
    assert {(process.role, process.worker) for process in recording.processes} == {("worker", 0), ("worker", 1)}
    assert len(recording.processes) == (2 if persistent else 4)
    assert recording.select(worker=1).n_passes == 12
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_model_that_was_called_before_it_was_forked_records_in_both(tmp_path: Path) -> None:
    recorded = Recorded(model(), sink=f"{tmp_path}/run/", keep_op="tanh")
    with torch.no_grad():
        recorded(value(0))
    loader = DataLoader(Data(recorded), num_workers=1, multiprocessing_context="fork")
    assert sum(len(batch) for batch in loader) == 12
    with torch.no_grad():
        recorded(value(1))
    recorded.close()
    recording = fastrec.load(tmp_path / "run")
    assert recording.select(role="main").n_passes == 2
    assert rows(recording.select(role="worker")) == expected()


def call(recorded: Recorded, i: int) -> int:
    with torch.no_grad():
        recorded(value(i))
    return os.getpid()


def call_and_die(recorded: Recorded) -> None:
    for i in range(12):
        call(recorded, i)
    os.kill(os.getpid(), signal.SIGKILL)


def test_pools_that_are_terminated_and_workers_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    recorded = Recorded(model(), sink=f"{tmp_path}/pool/", keep_op="tanh")
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:  # which is terminated at the end of the block
        pool.starmap(call, [(recorded, i) for i in range(12)], chunksize=12)
    assert rows(fastrec.load(tmp_path / "pool")) == expected()
    killed = Recorded(model(), sink=f"{tmp_path}/killed/", keep_op="tanh")
    process = context.Process(target=call_and_die, args=(killed,), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert rows(fastrec.load(tmp_path / "killed")) == expected()
    fastrec.recover(tmp_path / "killed")
    assert fastrec.load(tmp_path / "killed", live=True).state == "finished"


MAPPING = """
import sys, torch, fastrec, datasets

datasets.disable_progress_bars()
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
recorded = fastrec.Recorded(model, sink=sys.argv[1], keep_op="tanh")

def apply(row):
    with torch.no_grad():
        return {"out": recorded(torch.full((4,), float(row["i"]))).tolist()}

mapped = datasets.Dataset.from_dict({"i": list(range(12))}).map(apply, num_proc=2)
kept = fastrec.load(sys.argv[1])
assert sorted(kept.stack("1/tanh").tolist()) == sorted(mapped["out"]), kept
assert len(kept.processes) == 2
print("right")
"""


def test_datasets_map_records_in_each_of_its_processes(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    done = subprocess.run(
        [sys.executable, "-c", MAPPING, f"{tmp_path}/run/"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0 and "right" in done.stdout, done.stderr


def test_a_script_that_closes_nothing_leaves_a_finished_file(tmp_path: Path) -> None:
    code = "import sys, torch, fastrec\n"
    code += "recorded = fastrec.Recorded(torch.nn.Tanh(), sink=sys.argv[1], keep_op='tanh')\n"
    code += "recorded(torch.ones(2))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, f"{tmp_path}/run/"], check=True, timeout=60, env=env)
    assert fastrec.load(tmp_path / "run").n_passes == 1
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_the_file_is_finished_with_the_module(tmp_path: Path) -> None:
    recorded = pickle.loads(pickle.dumps(Recorded(model(), sink=tmp_path / "run", keep_module=True)))
    recorded(value(0))
    recorded.close()
    recorded(value(1))  # begins another file
    del recorded
    gc.collect()
    assert len(fastrec.load(tmp_path / "run").processes) == 2
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize("sink", ["run.h5", None, ["run/"]])
def test_a_sink_that_is_no_folder_is_refused(sink: Any) -> None:
    with pytest.raises(OptionError, match=r"Recorded\(sink=.*give a folder, such as 'run/'"):
        Recorded(model(), sink=sink, keep_op="tanh")
