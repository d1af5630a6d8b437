"""Models in plain torch: recurrent cells, hand-written loops, networks on graphs, policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A model with the arguments of a pass."""


class HandWrittenLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Linear(4 + 6, 24), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(x.shape[0], 6)
        for t in range(x.shape[1]):
            take, forget, new, give = self.gates(torch.cat([x[:, t], hidden], -1)).chunk(4, -1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(new)
            hidden = torch.sigmoid(give) * torch.tanh(cell)
        return self.head(hidden)


class GraphConvolution(nn.Module):
    """Two rounds of messages along edges, summed where they arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(8, 8), nn.GRUCell(8, 8)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for _ in range(2):
            sent = self.message(x)[edges[0]]
            x = self.update(torch.zeros_like(x).index_add_(0, edges[1], sent), x)
        return x.mean(0)


class GraphAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.score = nn.Linear(8, 8, bias=False), nn.Linear(16, 1)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        value = self.value(x)
        scores = nn.functional.leaky_relu(self.score(torch.cat([value[edges[0]], value[edges[1]]], -1)), 0.2).exp()
        total = torch.zeros(len(x), 1).scatter_add_(0, edges[1][:, None], scores)
        out = torch.zeros_like(value)
        out.index_put_((edges[1],), scores * value[edges[0]] / total[edges[1]], accumulate=True)
        return nn.functional.elu(out)


class AdaptiveComputation(nn.Module):
    """Runs its cell until it is sure enough."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.halting = nn.RNNCell(4, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        state, sure = x.new_zeros(x.shape[0], 6), x.new_zeros(x.shape[0], 1)
        for _ in range(6):
            state = self.cell(x, state)
            sure = sure + torch.sigmoid(self.halting(state))
            if bool((sure > 0.99).all()):
                break
        return state / sure


class Buffered(nn.Module):
    """Reads and writes a buffer, in place and through a view, and draws noise."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("memory", torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.memory[0] = self.linear(x).mean(0).detach()  # type: ignore[operator]
        self.memory[1:].add_(1)  # type: ignore[operator]
        x = x + torch.randn_like(x) * 0.1
        return x @ self.memory.t()  # type: ignore[operator]


EDGES = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])


def plain_models() -> Iterator[tuple[str, Callable[[], Made]]]:
    """Names, and functions that make a model and its inputs."""
    steps = torch.randn(2, 5, 4)
    nodes = torch.randn(5, 8)
    yield "LSTM", lambda: (nn.LSTM(4, 6, 2, batch_first=True), (steps,), {})
    yield "LSTM, both directions, projected", lambda: (nn.LSTM(4, 6, bidirectional=True, proj_size=3), (steps,), {})
    yield "GRU", lambda: (nn.GRU(4, 6, 2), (steps,), {})
    yield "RNN", lambda: (nn.RNN(4, 6), (steps,), {})
    yield "hand-written LSTM", lambda: (HandWrittenLSTM(), (steps,), {})
    yield "adaptive computation", lambda: (AdaptiveComputation(), (steps[:, 0],), {})
    yield "graph convolution", lambda: (GraphConvolution(), (nodes, EDGES), {})
    yield "graph attention", lambda: (GraphAttention(), (nodes, EDGES), {})
    yield "buffers", lambda: (Buffered(), (steps[0],), {})
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    yield "TransformerEncoder", lambda: (nn.TransformerEncoder(layer, 2), (torch.randn(2, 5, 8),), {})
    yield "Transformer", lambda: (nn.Transformer(8, 2, 1, 1, 16), (torch.randn(5, 2, 8), torch.randn(4, 2, 8)), {})


def policies() -> Iterator[tuple[str, Callable[[], Made]]]:
    """Policies of Stable-Baselines3, each with its observations."""
    from gymnasium import spaces
    from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
    from stable_baselines3.dqn.policies import DQNPolicy
    from stable_baselines3.sac.policies import SACPolicy
    from stable_baselines3.td3.policies import TD3Policy

    box = spaces.Box(-1, 1, (6,))
    image = spaces.Box(0, 255, (3, 36, 36), dtype="uint8")  # type: ignore[arg-type]
    both = spaces.Dict({"image": image, "vector": box})
    discrete = spaces.Discrete(3)

    def rate(_: float) -> float:
        return 1e-3

    vector = torch.randn(4, 6)
    picture = torch.randint(0, 255, (2, 3, 36, 36), dtype=torch.uint8)
    yield "ActorCriticPolicy", lambda: (ActorCriticPolicy(box, discrete, rate), (vector,), {})
    yield "ActorCriticPolicy, continuous", lambda: (ActorCriticPolicy(box, box, rate), (vector,), {})
    yield "ActorCriticCnnPolicy", lambda: (ActorCriticCnnPolicy(image, discrete, rate), (picture,), {})
    inputs = {"image": picture, "vector": vector[:2]}
    yield "MultiInputActorCriticPolicy", lambda: (MultiInputActorCriticPolicy(both, discrete, rate), (inputs,), {})
    yield "DQNPolicy", lambda: (DQNPolicy(box, discrete, rate), (vector,), {})
    yield "SACPolicy", lambda: (SACPolicy(box, box, rate), (vector,), {})
    yield "TD3Policy", lambda: (TD3Policy(box, box, rate), (vector,), {})
