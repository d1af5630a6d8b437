"""Recordings for the tests of the command line, always the same."""

import torch

import fastrec
from fastrec import Recorder
from fastrec.sinks import HDF5Sink, RAMSink


class Policy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.torso = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        self.actor = torch.nn.Linear(3, 2)
        for parameter in self.parameters():
            torch.nn.init.constant_(parameter, 0.5)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.actor(self.torso(obs)), -1)


def rollout(path: str, steps: int = 6, start: int = 0, **options: object) -> fastrec.Recording:
    """Record some steps with two environments to a file; the same recording in RAM."""
    policy = Policy()
    sinks = [RAMSink(), HDF5Sink(path, **options)]
    options = {"sink": sinks, "autoreset": "same_step"}
    with Recorder(policy, keep_module="torso", keep_op="softmax", **options) as rec, rec.phase("rollout"):
        for step in range(start, start + steps):
            policy(torch.tensor([[step, 1.0], [-step, -1.0]]))
            rec.step(reward=[step, -step], terminated=[step % 3 == 2, False], truncated=[False, False])
    return rec.recording
