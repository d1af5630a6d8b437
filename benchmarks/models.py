"""The four models of the contest, and what is to be kept of each pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model, its input, and the job: keep the output of each op of one type, which is a module's output too.

    ``passes`` is how many passes a contestant makes in one go.
    """

    name: str
    title: str
    model: nn.Module
    example: Tensor
    layer_type: str
    module_type: str
    passes: int


class ActorCritic(nn.Module):
    """Two separate networks, as PPO uses them for small observations."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = _mlp(2)
        self.critic = _mlp(1)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(obs), self.critic(obs)


def _mlp(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)
    )  # fmt: skip


class NatureCNN(nn.Module):
    """The image network of Mnih et al. 2015, laid out as in Stable-Baselines3."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(4, 32, kernel_size=8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, kernel_size=3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.linear = nn.Sequential(nn.Linear(64 * 7 * 7, 512), nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(self.cnn(image))


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
    """Torchvision's ResNet-18, down to the names of its modules; written out to need no second binary package."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2Model  # slow to import, and only one case needs it

    config = GPT2Config(
        n_layer=6, n_embd=256, n_head=4, vocab_size=1000, bos_token_id=0, eos_token_id=0, use_cache=False
    )
    return GPT2Model(config)


def _case(
    name: str, title: str, make: Callable[[], nn.Module], example: Tensor, kept: tuple[str, str], passes: int
) -> Case:
    torch.manual_seed(0)
    return Case(name, title, make().eval(), example, *kept, passes)


def load(name: str) -> Case:
    """The case of a name; random weights, the same each time."""
    return CASES[name]()


_RELU = ("relu", "ReLU")
CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: _case(
        "mlp", "actor-critic MLP, 64-64 tanh, batch 16", ActorCritic, torch.randn(16, 4), ("tanh", "Tanh"), 200
    ),
    "nature": lambda: _case("nature", "NatureCNN, batch 8, 4x84x84", NatureCNN, torch.rand(8, 4, 84, 84), _RELU, 10),
    "resnet": lambda: _case("resnet", "ResNet-18, batch 1, 3x64x64", ResNet18, torch.randn(1, 3, 64, 64), _RELU, 8),
    "gpt2": lambda: _case(
        "gpt2",
        "GPT-2, 6 layers, width 256, 32 tokens",
        _gpt2,
        torch.randint(1000, (1, 32)),
        ("layernorm", "LayerNorm"),
        10,
    ),
}
