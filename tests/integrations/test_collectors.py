"""A policy that records itself in the processes of TorchRL's collectors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastrec

ROOT = Path(__file__).parents[2]

COLLECT = """
import sys, warnings, torch, fastrec
from tensordict.nn import TensorDictModule
from torchrl.collectors import MultiSyncCollector
from torchrl.envs import GymEnv

warnings.simplefilter("ignore")


def env():
    return GymEnv("Pendulum-v1")


if __name__ == "__main__":
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    recorded = fastrec.Recorded(net, sink=sys.argv[1], keep_op="tanh", keep_module=["", "1"])
    policy = TensorDictModule(recorded, in_keys=["observation"], out_keys=["action"])
    collector = MultiSyncCollector([env, env], policy, frames_per_batch=20, total_frames=60)
    actions = torch.cat([batch["action"].reshape(-1, 1).clone() for batch in collector])
    collector.shutdown()
    torch.save(actions, sys.argv[2])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_workers_of_a_collector_of_torchrl_record_each_frame(tmp_path: Path) -> None:
    pytest.importorskip("torchrl")
    (tmp_path / "collect.py").write_text(COLLECT)
    done = subprocess.run(
        [sys.executable, f"{tmp_path}/collect.py", f"{tmp_path}/run/", f"{tmp_path}/actions.pt"],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    recording = fastrec.load(tmp_path / "run", live=True)
    assert recording.state == "finished"
    actions = torch.load(tmp_path / "actions.pt")
    kept = {round(value, 4) for value in recording.stack("").flatten().tolist()}
    assert len(actions) == 60 and {round(value, 4) for value in actions.flatten().tolist()} <= kept
    assert len(recording.processes) >= 2
