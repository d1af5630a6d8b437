"""What single functions return is valid, whatever hides their arguments; and a wrong value of each is found."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.graph import Operation, log_forward_pass, validate_history, validate_saved_activations
from tests.graph.models import Calls
from tests.graph.validation.functions import FUNCTIONS

UNDECIDED = {
    "argmax, of one element",
    "bernoulli, with a probability",
    "cross_entropy, one class",
    "ctc_loss",
    "ctc_loss, lengths computed",
    "embedding_bag",
    "embedding_bag, offsets computed",
    "fractional_max_pool2d, samples given",
    "max_unpool2d",
    "multi_margin_loss, satisfied",
    "multilabel_margin_loss",
    "segment_reduce",
    "tensor_split",
    "vmap",
}
"""Functions with an argument of which nothing can be said: no other value is known to be allowed, or none matters."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_right_value_is_valid_and_a_wrong_one_is_not(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    torch.manual_seed(0)
    report = validate_saved_activations(Calls(function), inputs)
    assert report, report
    assert bool(report.unchecked) == (name in UNDECIDED), report
    history = log_forward_pass(Calls(function), inputs)
    for op in wrong_values(history.operations):
        assert not validate_history(history), op.layer_label


def wrong_values(operations: Any) -> Iterator[Operation]:
    """The operations, each while its value is wrong in one element, as far as it has a right one."""
    made = (op for op in operations if op.layer_type not in ("input", "output", "empty", "emptylike", "new"))
    for op in made:
        value = op.activation
        if value is None or value.numel() == 0:
            continue
        right = value.clone()
        place = value.view(-1)[:1] if value.is_contiguous() else value[(slice(0, 1),) * value.dim()]
        place.copy_(place.logical_not() if value.dtype == torch.bool else place.nan_to_num(5.0, 5.0, 5.0) * 3 + 1)
        yield op
        value.copy_(right)


class GraphAttention(nn.Module):
    """Attention over the edges of a graph, with the greatest score of each node subtracted (as PyG's softmax does)."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.score = nn.Linear(4, 4), nn.Linear(8, 1)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        value = self.value(x)
        score = F.leaky_relu(self.score(torch.cat([value[edges[0]], value[edges[1]]], -1)), 0.2).squeeze(-1)
        greatest = score.new_zeros(len(x)).scatter_reduce(0, edges[1], score, "amax", include_self=False)
        weight = (score - greatest[edges[1]]).exp()
        total = weight.new_zeros(len(x)).scatter_add(0, edges[1], weight)
        message = value[edges[0]] * (weight / total[edges[1]])[:, None]
        return value.new_zeros(x.shape).index_add(0, edges[1], message)


class Memory(nn.Module):
    """Reads a memory by similarity, as neural Turing machines do; the memory is still empty."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(4, 3)
        self.register_buffer("memory", torch.zeros(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        similarity = F.cosine_similarity(self.memory[None] + 1e-16, self.key(x)[:, None] + 1e-16, dim=-1)
        return similarity.softmax(-1) @ self.memory


class StochasticDepth(nn.Module):
    """Draws with ``torch.bernoulli(x, p=)``, which reads only the form of x."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) * torch.bernoulli(x[:, :1], p=0.5)


class OldMasking(nn.Module):
    """The idioms of older code: ``new`` and ``copy_``, and a masked assignment that masks nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x)
        kept = out.new(out.size()).copy_(out)
        kept[kept > 1e3] = 0.0
        return kept + x


class MegatronAttention(nn.Module):
    """Scores by ``baddbmm`` onto uninitialised memory with ``beta=0``, as Bloom has it; a satisfied triplet loss."""

    def forward(self, query: Tensor, key: Tensor) -> Any:
        scores = torch.baddbmm(torch.empty(2, 5, 5), query, key.mT, beta=0.0, alpha=0.5)
        context = scores.softmax(-1) @ key
        return context, F.triplet_margin_loss(context[0], context[0] + 1e-3, context[0] + 1e3)


MODELS: list[tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = [
    (GraphAttention, (torch.randn(6, 4), torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]]))),
    (Memory, (torch.randn(2, 4),)),
    (StochasticDepth, (torch.rand(3, 4),)),
    (OldMasking, (torch.randn(3, 4),)),
    (MegatronAttention, (torch.randn(2, 5, 4), torch.randn(2, 5, 4))),
]


@pytest.mark.parametrize(("make", "inputs"), MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_models_as_they_were_published_are_valid(
    make: Callable[[], nn.Module], inputs: tuple[Tensor, ...], seed: int
) -> None:
    torch.manual_seed(seed)
    report = validate_saved_activations(make(), inputs)
    assert report, report
