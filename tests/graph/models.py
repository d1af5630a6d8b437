"""Models that several tests of the graph share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Calls(nn.Module):
    """A model out of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def network() -> nn.Module:
    """A small network of convolutions, for inputs of shape (batch, 3, 8, 8)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), nn.Flatten(), nn.Linear(36, 5), nn.Sigmoid()
    )


class Branching(nn.Module):
    """A buffer, parameters, a condition that widens the value, and a keyword argument."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(self.norm(x))
        if x.sum() > 0:
            x = torch.cat([x, x.cos()], dim=1)
        return torch.sub(x.sin(), other=x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(9.0).reshape(3, 3) / 9)
        self.register_buffer("scale", torch.full((3,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) * self.scale


class StoredModel(nn.Module):
    """A model of whose history a file holds something of everything.

    ``data/history.h5.gz`` is a history of it that an early version wrote, so its operations must stay as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.unused = nn.Parameter(torch.zeros(2, dtype=torch.float64), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.count += 1
        for _ in range(2):
            x = self.block(x)
        x = F.tanhshrink(F.dropout(x, 0.0))
        first = x[0]
        first.mul_(2.0)
        x = torch.einsum("ij,kj->ik", x + torch.tensor(1.5), torch.eye(3)) * (self.count > 0)
        if x.sum() > -1e9:
            x = x[..., :3].to(torch.bfloat16).to(dtype=torch.float32)
        low, high = x.split(1, dim=0)
        with torch.autocast("cpu", torch.bfloat16):
            product = low @ high.T
        mapped = torch.vmap(torch.sin)(high)
        turned = high.to(torch.complex64).conj() * 2j
        return {"low": low, "turned": turned, "none": x.new_zeros(0, 3), "product": product, "mapped": mapped}
