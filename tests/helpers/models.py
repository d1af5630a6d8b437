"""Models that the recorder has to record right."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(16, 2),
    )


class Residual(nn.Module):
    """In-place writes into what earlier ops and modules returned."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.lin(x)
        y += x
        z = self.act(y)
        z[:, 0] = 1.0
        z[:, 1:].mul_(2)
        z = F.relu_(z - 2).t()
        with torch.no_grad():
            w = z.detach().clone()
            torch.add(w, 1, out=w)
            w.clamp_(max=1.5).neg_().t()[:2] -= 1
        return z * w


class Shared(nn.Module):
    """One module at two addresses and called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.block = nn.Sequential(self.first, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.second(self.first(x)).sin()).sin() + x.sin()


class Recursive(nn.Module):
    """A module that calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor, depth: int = 3) -> Tensor:
        x = self.lin(x).relu()
        return self(x, depth - 1) * 2 if depth else x


class Branching(nn.Module):
    """Branches and loops that hang on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.side = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lin(x)
        if x.sum() > 0:
            x = self.side(x.relu()).relu()
        for _ in range(int(x.abs().sum()) % 4):
            x = (self.lin(x) * 0.5).relu()
        return self.side(x).relu()


Pair = namedtuple("Pair", "left right")


@dataclass
class Out:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    cache: Any = None


class Nested(nn.Module):
    """Arguments and outputs in containers of all sorts."""

    def __init__(self) -> None:
        super().__init__()
        self.give_dict = _Apply(lambda x: {"a": x.sin(), "b": [x.cos(), None, 3], 7: x.tan()})
        self.give_pair = _Apply(lambda d: Pair(d["a"], (d["b"][0], None)))
        self.give_none = _Apply(lambda d: None)
        self.give_out = _Apply(lambda x, *, scale, pair: Out(x * scale, (pair.left, pair.right[0])))

    def forward(self, x: Tensor) -> Out:
        found = self.give_dict(x)
        pair = self.give_pair(found)
        self.give_none(found)
        values, places = x.max(dim=1)
        return self.give_out(values, scale=torch.tensor(2.0), pair=pair)


class _Apply(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Catching(nn.Module):
    """Catches what its submodules raise, at several depths."""

    def __init__(self) -> None:
        super().__init__()
        self.bad = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), _Raises()))
        self.good = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            try:
                x = self.bad(x)
            except ArithmeticError:
                x = self.good(x).tanh()
        return self.good(x).tanh()


class _Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.sin()
        raise ArithmeticError("as it happens")


class Operators(nn.Module):
    """Operators, properties, factories, views, in-place and out= forms, several outputs."""

    def forward(self, x: Tensor) -> Tensor:
        y = 1 - x
        y = 2 / (y @ x.T) + abs(x).mean() ** 2
        y += torch.ones_like(y)
        y[0] = 3
        a, b = y.split(1, dim=0)
        best = torch.max(y, dim=0)
        torch.mul(a.detach(), b.detach(), out=torch.zeros(1, 2))
        z = torch.stack([a, b]).expand(3, 2, 1, 2)
        return z.real.conj().permute(1, 0, 2, 3)[..., :1] - best.values.sum() + (y > 0).any()


class Attends(nn.Module):
    """Composites: attention, einsum, and one that calls another."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y, weights = self.attn(x, x, x)
        z, _ = self.attn(y, x, x, need_weights=False)
        mixed = torch.einsum("bij,bjd->bid", weights, z)
        return self.norm(mixed).norm(dim=-1).softmax(-1)


class Reads(nn.Module):
    """Recurrent modules with packed and plain inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True)
        self.gru = nn.GRU(5, 3, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, [3, 2], batch_first=True)
        out, (h, c) = self.lstm(packed)
        padded, lengths = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        out, h2 = self.gru(padded)
        return out.sum(1) + h2.mean() + h.sum() + c.sum()


class BasicBlock(nn.Module):
    """A residual block with one in-place ReLU module that is called twice, as in torchvision."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet18(nn.Module):
    """Torchvision's ResNet-18, an eighth as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        for i, (inputs, outputs) in enumerate([(8, 8), (8, 16), (16, 32), (32, 64)], start=1):
            blocks = BasicBlock(inputs, outputs, 1 if i == 1 else 2), BasicBlock(outputs, outputs, 1)
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(8, 2))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (3, 4)),
    "conv net": (conv_net, (2, 3, 8, 8)),
    "residual": (Residual, (3, 4)),
    "shared": (Shared, (3, 4)),
    "recursive": (Recursive, (3, 4)),
    "nested": (Nested, (3, 4)),
    "operators": (Operators, (2, 2)),
    "attention": (Attends, (2, 3, 8)),
    "recurrent": (Reads, (2, 3, 4)),
    "encoder": (encoder, (2, 3, 8)),
    "resnet": (ResNet18, (2, 3, 32, 32)),
}
"""Models that run the same ops in every pass, with the shape of their input."""

DYNAMIC: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "branching": (Branching, (3, 4)),
    "catching": (Catching, (3, 4)),
}
