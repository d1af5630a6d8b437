"""Each exemption holds where it should, and not beside it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.graph import log_forward_pass, validate_history
from fastrec.graph.validation.exemptions import EXEMPTIONS
from tests.graph.models import Calls

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
ONES = torch.ones(2, 3, 4)


def overwritten(x: Tensor) -> Tensor:
    y = x.clone()
    y[:] = x.exp()
    return y


def filled(x: Tensor) -> Tensor:
    return x.clone().fill_(2.0) + x


CASES: list[tuple[str, Callable[..., Any], tuple[Tensor, ...]]] = [
    ("nothing to change", lambda x: torch.cat([x, x[:, :0].exp()], 1), (X,)),
    ("form only", lambda x: torch.ones_like(x) + x, (X,)),
    ("form only", lambda x, y: y.sum((0, 1)).expand_as(x) * x, (X, X)),
    ("overwritten", overwritten, (X,)),
    ("overwritten", filled, (X,)),
    ("statistics", nn.BatchNorm1d(3).train(), (X,)),
    ("zero factor", lambda x: x * torch.zeros(4), (X,)),
    ("zero factor", lambda x: x @ torch.zeros(4, 2), (X,)),
    ("zero factor", lambda x: F.layer_norm(x, (4,), torch.zeros(4)), (X,)),
    ("zero factor", lambda x: F.linear(x, torch.zeros(5, 4), torch.ones(5)), (X,)),
    ("zero factor", lambda x: (x * 0) / x.exp(), (X,)),
    ("all alike", lambda x: F.embedding(x.argmax(-1), torch.ones(4, 2)), (X,)),
    ("all alike", lambda x: torch.ones(4)[x.argmax(-1)], (X,)),
    ("one element", lambda x: x.sum(-1, keepdim=True).softmax(-1), (X,)),
    ("one element", lambda x: F.layer_norm(x.sum(-1, keepdim=True), (1,)), (X,)),
    ("one element", lambda x: F.scaled_dot_product_attention(x, x[:, :1].exp(), x[:, :1]), (X,)),
    ("not chosen", lambda x: torch.where(torch.ones(4, dtype=torch.bool), x, x.exp()), (X,)),
    ("not chosen", lambda x: x.masked_fill(torch.ones(4, dtype=torch.bool), 2.0), (X,)),
    ("not chosen", lambda x: torch.where(x > 0, torch.ones(4), torch.ones(4)), (X,)),
    ("dropped", lambda x: F.dropout(x, 1.0), (X,)),
    ("equal bounds", lambda x: x.clamp(1.0, 1.0), (X,)),
    ("equal bounds", lambda x: torch.clamp(x, min=torch.ones(4), max=torch.ones(4)), (X,)),
    ("absorbed", lambda x: x + torch.tensor(float("inf")), (X,)),
    ("only zero", lambda x: x[:, torch.zeros_like(x[0, 0]).long()], (X,)),
    ("discrete", lambda x: torch.logical_or(x > 0, torch.ones(4, dtype=torch.bool)), (X,)),
]


@pytest.mark.parametrize(("rule", "function", "inputs"), CASES)
def test_a_rule_exempts_what_it_says(rule: str, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
    report = validate_history(log_forward_pass(Calls(function), inputs))
    assert report, report
    assert rule in {entry.rule for entry in report.exempted}, report


def test_every_rule_is_tested() -> None:
    assert {rule.name for rule in EXEMPTIONS} == {rule for rule, _, _ in CASES}


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
        nn.BatchNorm1d(3).eval(),
    ],
)
def test_nothing_else_is_exempted(function: Callable[..., Any]) -> None:
    report = validate_history(log_forward_pass(Calls(function), X))
    assert report and report.exempted == [], report


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("mul", lambda x, y: x * 2 + y.to(x.device) * 0),
        ("linear", lambda x, y: x.clone()),
        ("relu", lambda x, y: x.relu()),
    ],
)
def test_no_rule_hides_an_operation_that_ignores_its_parent(name: str, function: Callable[..., Any]) -> None:
    history = log_forward_pass(Calls(lambda x, y: torch.add(x, y.exp())), (X, X))
    add = history["add_1"].raw  # type: ignore[union-attr]
    add.call.func, add.call.layer_type = function, name
    add.value = function(X, X)
    history["output_1"].raw.value = add.value  # type: ignore[union-attr]
    assert not validate_history(history)
