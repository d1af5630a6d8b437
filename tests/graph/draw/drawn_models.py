"""Models whose drawings have something of everything: repeats, branches, dense edges, conditions, loops, wild names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastrec.graph import ModelHistory, get_model_metadata


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        mask = torch.ones(x.shape[1], x.shape[1]).tril().bool()
        scores = (q @ k.transpose(-1, -2) / 3).masked_fill(~mask, -1e9)
        return self.out(scores.softmax(-1) @ v)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Repeats that fold, skip connections, a mask that comes from no input."""

    def __init__(self, blocks: int = 4, width: int = 8) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.register_buffer("positions", torch.arange(16))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.embed(self.positions[: tokens.shape[1]] % 10)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Dense(nn.Module):
    """Each layer reads all layers before it."""

    def __init__(self, layers: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4 * n + 4, 8), nn.ReLU(), nn.Linear(8, 4)) for n in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for layer in self.layers:
            values.append(layer(torch.cat(values, -1)))
        return torch.cat(values, -1)


class Branches(nn.Module):
    """Branches of several depths that are joined again, a condition, a mixture of trainable and frozen parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.short = nn.Linear(4, 4)
        self.long = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.mixed = nn.Linear(4, 4)
        self.mixed.bias.requires_grad_(False)

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        joined = torch.cat([self.short(x), self.long(x), self.frozen(x), x * torch.rand(1)], -1)
        if joined.sum() > -1e9:
            joined = joined - scale
        return {"joined": joined.softmax(-1), "mixed": self.mixed(x)}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.hidden, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(1, 8)
        for step in range(4):
            state = torch.tanh(self.cell(x[:, step]) + self.hidden(state))
            state = state * state
        return self.out(state)


WILD = (
    "</script><script>wild()</script>",
    '<!--<b onload="x">\'&amp;',
    "\u2028\u2029\x0b\ud800",
    "名前😀" * 12,
    "__proto__",
)
"""Names that could end a script element, open a tag or a comment, break a line of a script, or be no text at all."""


class Wild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in WILD:
            kind = type(name.replace(".", "").replace("\ud800", ""), (nn.Sequential,), {})  # no surrogate names a class
            self.add_module(name, kind(nn.Linear(4, 4), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        for name in WILD:
            x = getattr(self, name)(x)
        return x


def wild() -> nn.Module:
    model = Wild()
    model.__class__ = type("</script><title>'\"&<wild>", (Wild,), {})
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], dict[str, Any]]] = {
    "transformer": (Transformer, (torch.zeros(1, 5, dtype=torch.int64),), {}),
    "dense": (Dense, (torch.ones(2, 4),), {}),
    "branches": (Branches, (torch.ones(2, 4),), {"scale": torch.ones(16)}),
    "recurrent": (Recurrent, (torch.ones(1, 4, 4),), {}),
    "wild": (wild, (torch.ones(2, 4),), {}),
}


def history_of(name: str) -> ModelHistory:
    """The history of one of the models."""
    make, args, kwargs = MODELS[name]
    torch.manual_seed(0)
    return get_model_metadata(make(), args, kwargs, random_seed=0)
