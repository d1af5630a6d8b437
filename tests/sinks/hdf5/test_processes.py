"""Several processes: forked children, ranks, workers."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import fastrec

ROOT = Path(__file__).parents[3]

PRELUDE = """
import os, sys, torch
import fastrec
from torch import nn
from fastrec import FastrecError, Recorder
from fastrec.sinks import HDF5Sink
torch.set_num_threads(1)
"""


def run(code: str, *given: object) -> list[str]:
    """What a program prints that an interpreter of its own runs."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, given)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


FORKS = """
class Forks(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.child, self.forks = nn.Tanh(), None, False
    def forward(self, x):
        x = self.body(x)
        if self.forks:
            self.forks, self.child = False, os.fork()
            if not self.child:
                for i in range(500):  # more than a block
                    self.body(x + i)
                self.body(x.double())  # a column that the parent does not have
        return self.body(x)

model, sink = Forks(), HDF5Sink(sys.argv[1], block_bytes=4096)
with Recorder(model, keep_module=True, sink=sink) as rec:
    model(torch.zeros(4, 64))
    model.forks = True
    model(torch.ones(4, 64))
    if not model.child:
        for use in (rec.flush, sink.flush, sink._pass_log.close):
            try:
                use()
            except FastrecError as error:
                print(error, flush=True)
        with Recorder(model, keep_module=True, sink=HDF5Sink(sys.argv[2])) as own:
            model(torch.full((4, 64), 7.0))
        print(own._sinks[0].path, flush=True)
        os._exit(0)
    assert os.waitpid(model.child, 0)[1] == 0
    model(torch.zeros(4, 64))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_inside_of_a_pass_leaves_the_file_to_the_parent(tmp_path: Path) -> None:
    *messages, path = run(FORKS, tmp_path / "run.h5", tmp_path / "run.{pid}.h5")
    assert len(messages) == 3 and all("open another recorder in the child" in line for line in messages)
    assert "HDF5Sink('run.{pid}.h5')" in messages[1]
    recording = fastrec.load(tmp_path / "run.h5")
    assert (recording.n_passes, len(recording)) == (3, 9)
    once = torch.tanh(torch.ones(()))
    assert recording.stack("body")[:, 0, 0].tolist() == [0, 0, once, once.tanh(), 0, 0]
    own = fastrec.load(path)
    assert own.stack("module:")[0, 0, 0] == torch.tanh(torch.tanh(torch.tensor(7.0)))


RANKS = """
import torch.distributed as dist
import torch.multiprocessing as mp

def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    with Recorder(model, keep_op="tanh", sink=HDF5Sink(folder + "/run.{rank}.h5")) as rec:
        for i in range(3):
            model(torch.full((1, 2), float(10 * rank + i))).sum().backward()
            rec.step(rank=rank)
    with torch.no_grad():
        last = model(torch.full((1, 2), float(10 * rank + 2)))
    assert torch.equal(fastrec.load(f"{folder}/run.{rank}.h5").stack("tanh_1")[2], last)
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
"""


@pytest.mark.slow
def test_each_rank_writes_a_file_of_its_own(tmp_path: Path) -> None:
    run(RANKS, tmp_path)
    for rank in range(2):
        recording = fastrec.load(tmp_path / f"run.{rank}.h5")
        assert recording.n_passes == 3 and recording.steps["rank"].tolist() == [rank] * 3
        assert recording.predicate_failures == []


WORKERS = """
from torch.utils.data import DataLoader, Dataset, get_worker_info

class Features(Dataset):
    def __init__(self, path):
        self.model, self.sink, self.rec = nn.Tanh(), HDF5Sink(path), None
    def __len__(self):
        return 8
    def __getitem__(self, index):
        if self.rec is None:
            self.rec = Recorder(self.model, keep_module=True, sink=self.sink).__enter__()
        value = self.model(torch.full((2,), float(index)))
        self.rec.flush()
        return value

for batch in DataLoader(Features(sys.argv[1]), batch_size=2, num_workers=2):
    pass
"""


@pytest.mark.slow
def test_workers_of_a_data_loader_write_files_of_their_own(tmp_path: Path) -> None:
    run(WORKERS, tmp_path / "run.{worker}.h5")
    total = [fastrec.load(tmp_path / f"run.{worker}.h5").n_passes for worker in range(2)]
    assert total == [4, 4]
