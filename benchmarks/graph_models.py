"""The models on which the graph is timed and compared with the reference's."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.models import load


class GraphCase(NamedTuple):
    """A model and its input."""

    title: str
    model: nn.Module
    example: Tensor


class Additions(nn.Module):
    """Additions of a scalar, where everything but the pass is overhead."""

    def __init__(self, count: int = 50) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.count):
            x = x + 1.0
        return x


class UnrolledRNN(nn.Module):
    """A recurrent cell that is called by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[1], 8)
        for step in x:
            state = torch.tanh(self.inner(step) + self.outer(state))
        return state


class Tagger(nn.Module):
    """An embedding, an LSTM and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(20, 8), nn.LSTM(8, 6, 2), nn.Linear(6, 3)

    def forward(self, words: Tensor) -> Tensor:
        out, (state, _) = self.lstm(self.embedding(words))
        return self.head(out) + self.head(state[-1])


class UNet(nn.Module):
    """One step down, one up, and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inside, self.up = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(7, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.inside(F.relu(self.down(x))))
        return self.up(torch.cat([x, F.interpolate(y, scale_factor=2.0)], 1))


class Choosing(nn.Module):
    """Two conditions and a tensor made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(x)
        if torch.mean(x - 5) > 3:
            x = x.relu()
        else:
            x = x.tanh()
        while x.abs().max() > 0.5:
            x = x / 2
        return {"out": self.second(x + torch.ones(8)), "hidden": x}


class Writing(nn.Module):
    """Writes in place, through views and through slices."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y += 1
        y[:, 0] = 0
        first = y[0]
        first.mul_(2)
        return (y * 3).sum(1)


class Attention(nn.Module):
    """Attention written out, with a mask from a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("mask", torch.ones(5, 5).tril().bool())

    def forward(self, x: Tensor) -> Tensor:
        weights = self.queries(x) @ self.keys(x).transpose(-2, -1) / 8**0.5
        return weights.masked_fill(~self.mask, float("-inf")).softmax(-1) @ self.values(x)


def _contest(name: str) -> GraphCase:
    case = load(name)
    return GraphCase(case.title, case.model, case.example)


def _own(make: Callable[[], nn.Module], title: str, example: Tensor) -> GraphCase:
    torch.manual_seed(0)
    return GraphCase(title, make().eval(), example)


CASES: dict[str, Callable[[], GraphCase]] = {
    "resnet": lambda: _contest("resnet"),
    "additions": lambda: _own(Additions, "50 additions of a scalar", torch.rand(8)),
    "mlp": lambda: _contest("mlp"),
    "nature": lambda: _contest("nature"),
    "gpt2": lambda: _contest("gpt2"),
    "rnn": lambda: _own(UnrolledRNN, "RNN cell unrolled by hand", torch.rand(6, 2, 8)),
    "lstm": lambda: _own(Tagger, "embedding, LSTM, head", torch.arange(10).view(5, 2)),
    "unet": lambda: _own(UNet, "small U-Net", torch.rand(1, 3, 8, 8)),
    "choosing": lambda: _own(Choosing, "conditions, a loop, a dict", torch.ones(2, 8)),
    "writing": lambda: _own(Writing, "writes in place and through views", torch.rand(2, 8)),
    "attention": lambda: _own(Attention, "attention with a buffer", torch.rand(2, 5, 8)),
}
TIMED = ("resnet", "additions")
