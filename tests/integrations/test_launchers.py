"""What starts the processes of a job: each starts two real ones here, and both write into one folder."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import fastrec
from fastrec import Recording
from fastrec.sinks.hdf5.process import ATTEMPT_VARIABLES, RANK_VARIABLES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no gloo")

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

LAUNCHER_VARIABLES = {name for pair in RANK_VARIABLES for name in pair} | {
    *ATTEMPT_VARIABLES,
    *("NODE_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
}

MODEL = """
import os, sys, torch, fastrec
torch.set_num_threads(1)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
"""

LOOP = """
with fastrec.Recorder(model, keep_op="tanh", sink=sys.argv[1]) as rec:
    for i in range(3):
        model(torch.full((2, 4), 10.0 * rank + i))
        rec.step(number=10 * rank + i)
"""

GROUP = f"""{MODEL}
import torch.distributed
torch.distributed.init_process_group("gloo")
rank, model = torch.distributed.get_rank(), torch.nn.parallel.DistributedDataParallel(net)
{LOOP}
torch.distributed.destroy_process_group()
"""

ACCELERATE = f"""{MODEL}
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
rank, model = accelerator.process_index, accelerator.prepare(net)
{LOOP}
accelerator.end_training()
"""

ALONE = f"""{MODEL}
rank, model = int(sys.argv[2]), net
{LOOP}
"""


def launch(*commands: list[str], variables: list[dict[str, str]] | None = None, seconds: int = 120) -> None:
    """Run commands side by side, each with its variables, until all have ended well."""
    env = {name: text for name, text in os.environ.items() if name not in LAUNCHER_VARIABLES}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**env, **more})
        for command, more in zip(commands, variables or [{}] * len(commands), strict=True)
    ]
    try:
        ended = [(process.communicate(timeout=seconds)[0], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(code == 0 for _, code in ended), "\n".join(text[-1500:] for text, _ in ended)


def plain() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def check(recording: Recording) -> None:
    """Two ranks, each with its three steps and the values of the plain model."""
    assert list(recording.ranks) == [0, 1]
    assert {(process.rank, process.world_size) for process in recording.processes} == {(0, 2), (1, 2)}
    for rank, part in recording.ranks.items():
        with torch.no_grad():
            expected = torch.stack([plain()[:2](torch.full((2, 4), 10.0 * rank + i)) for i in range(3)])
        torch.testing.assert_close(part.stack("1/tanh"), expected)
        assert part.steps["number"].tolist() == [10 * rank + i for i in range(3)]
    assert recording.stack("1/tanh", by="step").shape == (3, 2, 2, 8)


def script(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "train.py"
    path.write_text(text)
    return [str(path), f"{tmp_path}/run/"]


def test_torchrun(tmp_path: Path) -> None:
    launch([*TORCHRUN, *script(tmp_path, GROUP)])
    check(fastrec.load(tmp_path / "run"))


@pytest.mark.skipif(find_spec("accelerate") is None, reason="needs accelerate")
def test_accelerate(tmp_path: Path) -> None:
    # Its own launcher starts several processes for GPUs only; on CPUs it takes those of torchrun.
    launch([*TORCHRUN, *script(tmp_path, ACCELERATE)])
    check(fastrec.load(tmp_path / "run"))


@pytest.mark.parametrize(
    ("rank_name", "size_name"),
    [
        pytest.param("SLURM_PROCID", "SLURM_NTASKS", id="slurm"),
        pytest.param("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", id="open-mpi"),
        pytest.param("PMI_RANK", "PMI_SIZE", id="mpich"),
    ],
)
def test_variables_of_a_launcher_without_a_process_group(tmp_path: Path, rank_name: str, size_name: str) -> None:
    command = [sys.executable, *script(tmp_path, ALONE)]
    variables = [{rank_name: str(rank), size_name: "2"} for rank in range(2)]
    launch([*command, "0"], [*command, "1"], variables=variables)
    check(fastrec.load(tmp_path / "run"))


LIGHTNING = """
import sys, warnings, logging, torch, pytorch_lightning as pl
from fastrec.integrations.lightning import RecordCallback

warnings.simplefilter("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def training_step(self, batch, index):
        if index == int(sys.argv[3]):
            raise ZeroDivisionError
        return self.net(batch).square().mean()

    def train_dataloader(self):
        rows = torch.arange(16.0).reshape(16, 1).expand(16, 4) / 16
        return torch.utils.data.DataLoader(rows[self.trainer.global_rank :: 2], batch_size=2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


if __name__ == "__main__":
    trainer = pl.Trainer(
        strategy=sys.argv[2], devices=2, accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[RecordCallback(sink=sys.argv[1], keep_op="tanh")],
    )
    try:
        trainer.fit(Model())
    except Exception as error:
        if sys.argv[3] == "-1" or "ZeroDivisionError" not in repr(error):
            raise
"""


def check_lightning(recording: Recording, n_steps: int) -> None:
    rows = torch.arange(16.0).reshape(16, 1).expand(16, 4) / 16
    assert list(recording.ranks) == [0, 1]
    for rank, part in recording.ranks.items():
        with torch.no_grad():
            expected = torch.stack([plain()[:2](batch) for batch in rows[rank::2].split(2)])
        torch.testing.assert_close(part.stack("net.1/tanh"), expected[:n_steps])
        assert len(part.select(phase="train").steps) == n_steps
        assert [record.ctx.step for record in part] == list(range(n_steps))


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_lightning_starts_processes_in_which_its_callback_opens_a_recorder(tmp_path: Path, strategy: str) -> None:
    pytest.importorskip("pytorch_lightning")
    launch([sys.executable, *script(tmp_path, LIGHTNING), strategy, "-1"])
    recording = fastrec.load(tmp_path / "run", live=True)
    assert recording.state == "finished"
    check_lightning(recording, 4)
    assert recording.stack("net.1/tanh", by="step").shape == (4, 2, 2, 8)


def test_a_step_of_lightning_that_raises_keeps_those_before_it_in_finished_files(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    launch([sys.executable, *script(tmp_path, LIGHTNING), "ddp", "2"])
    recording = fastrec.load(tmp_path / "run", live=True)
    assert recording.state == "finished"
    check_lightning(recording, 2)
