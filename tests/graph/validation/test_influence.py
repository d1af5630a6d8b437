"""Each edge is shown, or there is a reason why it can't be; and no argument leaves what its function allows."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.graph import log_forward_pass, validate_history
from tests.graph.models import Calls

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
ONES = torch.ones(2, 3, 4)


def overwritten(x: Tensor) -> Tensor:
    y = x.clone()
    y[:] = x.exp()
    return y


CASES: list[tuple[str, Callable[..., Any]]] = [
    ("nothing to change", lambda x: torch.cat([x, x[:, :0].exp()], 1)),
    ("form only", lambda x: torch.ones_like(x) + x),
    ("form only", lambda x: x.sum((0, 1)).expand_as(x) * x),
    ("overwritten", overwritten),
    ("overwritten", lambda x: x.clone().fill_(2.0) + x),
    ("hidden", lambda x: torch.zeros_like(x, dtype=torch.long) * x.argmax()),
    ("hidden", lambda x: x * torch.nan),
    ("hidden", lambda x: x @ torch.full((4, 2), torch.nan)),
    ("hidden", lambda x: torch.ones(4)[x.argmax(-1)]),
    ("hidden", lambda x: torch.where(torch.ones(4, dtype=torch.bool), x, x.exp())),
    ("hidden", lambda x: torch.logical_or(x > 0, torch.ones(4, dtype=torch.bool))),
    ("flat", lambda x: torch.addmm(x[0], x[0], torch.eye(4), beta=0)),
]


@pytest.mark.parametrize(("rule", "function"), CASES)
def test_a_value_that_makes_no_difference_has_a_reason(rule: str, function: Callable[..., Any]) -> None:
    report = validate_history(log_forward_pass(Calls(function), X))
    assert report and rule in {entry.rule for entry in report.exempted}, report


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * ONES,
        lambda x: x @ torch.eye(4),
        lambda x: F.layer_norm(x, (4,), torch.ones(4), torch.zeros(4)),
        lambda x: F.linear(x, torch.ones(5, 4), torch.zeros(5)),
        lambda x: F.embedding(x.argmax(-1), torch.arange(8.0).reshape(4, 2)),
        lambda x: x.softmax(-1),
        lambda x: torch.where(x > 0, x, x.exp()),
        lambda x: F.dropout(x, 0.2),
        lambda x: x + 1e20,
        lambda x: x.clamp(-1e-3, 1e-3),
        lambda x: x.abs().sum().mul(1e-3).clamp(min=1.0),
        lambda x: x.abs().sum().mul(-1e-3).clamp(max=-1.0),
        lambda x: x.isnan().float() + x,
        lambda x: x.relu() + x.sigmoid() + x.sign(),
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        lambda x: x * torch.zeros(4),  # NaN times zero is NaN
        lambda x: x @ torch.zeros(4, 2),
        lambda x: F.layer_norm(x, (4,), torch.zeros(4)),
        lambda x: torch.clamp(x, min=torch.ones(4), max=torch.ones(4)),
        lambda x: x + torch.tensor(float("inf")),
        lambda x: F.dropout(x, 1.0),
        nn.BatchNorm1d(3).train(),
        nn.BatchNorm1d(3).eval(),
    ],
)
def test_an_influence_that_there_is_shows(function: Callable[..., Any]) -> None:
    report = validate_history(log_forward_pass(Calls(function), X))
    assert report and report.exempted == [] and report.unchecked == [], report


def test_what_could_not_be_decided_is_named_with_its_parent() -> None:
    report = validate_history(log_forward_pass(Calls(lambda x: torch.bernoulli(x, p=0.5) + x), torch.rand(4)))
    (entry,) = report.unchecked
    assert report and (entry.name, entry.parent) == ("bernoulli_1_1", "input_1")
    assert str(entry) == ("bernoulli_1_1 of input_1: no other value that was tried makes a difference to the result")


def test_functions_that_are_not_of_torch_get_no_other_integers() -> None:
    calls = []

    @torch.library.custom_op("fastrec_tests::take_row", mutates_args=())
    def take_row(x: Tensor, row: Tensor) -> Tensor:
        calls.append(int(row))
        return x[int(row)].clone()

    report = validate_history(log_forward_pass(Calls(lambda x, row: take_row(x, row + 0)), (X[0], torch.tensor(2))))
    assert report and set(calls) == {2}
    assert "no other value is known to be allowed: take_row.default may use it as a position" in str(report.unchecked)


PACKED = """
import torch
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence, unpack_sequence,
)
from fastrec.graph import validate_saved_activations

class Reader(nn.Module):
    def __init__(self, kind, enforce_sorted, total):
        super().__init__()
        self.rnn = kind(3, 4, 2, batch_first=True, bidirectional=True)
        self.enforce_sorted, self.total = enforce_sorted, total
    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths + 0, batch_first=True, enforce_sorted=self.enforce_sorted)
        out, _ = self.rnn(packed)
        out = PackedSequence(out.data * 2, out.batch_sizes, out.sorted_indices, out.unsorted_indices)
        return pad_packed_sequence(out, batch_first=True, total_length=self.total)

class Pieces(nn.Module):
    def forward(self, a, b):
        return [2 * part for part in unpack_sequence(pack_sequence([a, b]))], pad_sequence([a, b])

for seed in range(2):
    torch.manual_seed(seed)
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        for enforce_sorted in (True, False):
            for total in (None, 7):
                inputs = torch.randn(3, 5, 3), torch.tensor([5, 3, 2] if enforce_sorted else [2, 5, 3])
                report = validate_saved_activations(Reader(kind, enforce_sorted, total), inputs)
                assert report, report
    report = validate_saved_activations(Pieces(), (torch.randn(4, 3), torch.randn(2, 3)))
    assert report, report
print("valid", flush=True)
"""


def test_packed_sequences_are_valid_and_the_process_survives() -> None:
    child = subprocess.run([sys.executable, "-c", PACKED], capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == 0 and child.stdout == "valid\n", child.stdout + child.stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("mul", lambda x, y: x * 2 + y.to(x.device) * 0),
        ("linear", lambda x, y: x.clone()),
        ("relu", lambda x, y: x.relu()),
    ],
)
def test_an_operation_that_is_called_what_it_is_not_is_found(name: str, function: Callable[..., Any]) -> None:
    history = log_forward_pass(Calls(lambda x, y: torch.add(x, y.exp())), (X, X))
    add = history["add_1"].raw  # type: ignore[union-attr]
    add.call.func, add.call.layer_type = function, name
    add.value = function(X, X)
    history["output_1"].raw.value = add.value  # type: ignore[union-attr]
    assert not validate_history(history)
