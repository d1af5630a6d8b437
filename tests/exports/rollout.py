"""A rollout to export: two environments, episodes of other lengths, from RAM and from a file."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import fastrec
from fastrec import Recorder, Recording
from fastrec.predicates import kind, op

OBSERVATIONS, ACTIONS = ":in[0]", ":out"


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def rollout(path: Path | None = None, steps: int = 12, envs: int = 2) -> Recording:
    """Environment 0 ends every 5 steps, 1 is cut off after 7; the last episodes are open."""
    policy = Policy()
    keep_op = kind("input") | op("tanh")
    options = {"include_source_events": True, "autoreset": "same_step", "sink": path}
    with Recorder(policy, keep_op=keep_op, keep_module=["", "head"], **options) as rec:
        for i in range(steps):
            policy(torch.randn(envs, 3))
            ended = [(i + 1) % 5 == 0 and env == 0 for env in range(envs)]
            cut = [(i + 1) == 7 and env == 1 for env in range(envs)]
            rec.step(reward=np.arange(envs) + i / 2, terminated=ended, truncated=cut, action=[i % 3] * envs)
    return rec.recording if path is None else fastrec.load(path)
