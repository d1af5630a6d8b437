"""Small runs with something to see: units that die, phases, episodes, values that are not finite, names that hurt."""

from __future__ import annotations

import torch
from torch import nn

from fastrec import Recorder, Recording

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u2028"


class Net(nn.Module):
    """A body that dies, a head that saturates, and a name that no HTML may hold as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, 4)
        self.add_module(HOSTILE.replace(".", "_"), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for child in self.children():
            x = child(x)
        return x


def run(passes: int = 60, *, bad_pass: int | None = None, seed: int = 0, steps: bool = True) -> Recording:
    """A run in which units of the first layer die one after the other."""
    torch.manual_seed(seed)
    model = Net()
    with torch.no_grad(), Recorder(model, keep_op=True) as rec:
        for i in range(passes):
            with rec.phase("warm up" if i < passes // 3 else "training"):
                model.body[0].weight[: i * 16 // passes] = 0
                model.body[0].bias[: i * 16 // passes] = -1
                x = torch.randn(5, 8) * (1 + i / 10)
                if i == bad_pass:
                    x[2, 3] = float("nan")
                model(x)
                if steps:
                    rec.step(reward=1.0, terminated=i % 10 == 9, truncated=False)
    return rec.recording
