"""Nodes of compiled graphs are taken for the right events."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import Recorder
from fastrec._errors import UnsupportedModelError
from tests.engines.compiled.guards import Does, X, between, cosine, labels, sin_between
from tests.engines.compiled.guards import fresh_dynamo as fresh_dynamo


def _reads(m: Any, x: Tensor) -> Tensor:
    y = x * 2
    between(lambda: x.sin())
    return y.sin()


def _callers(m: Any, x: Tensor) -> Tensor:
    y = sin_between(x) + 1
    sin_between(y)
    z = sin_between(y)
    return z.sin()


def _shapes(m: Any, x: Tensor) -> Tensor:
    y = x.sin()
    z = sin_between(y)
    between(lambda: z[0].cos())
    return z.cos()


def _constants(m: Any, x: Tensor) -> Tensor:
    z = sin_between(x)
    between(lambda: z.cumsum(0))
    return z.cumsum(1)


def _modules(m: Any, x: Tensor) -> Tensor:
    z = sin_between(x)
    between(lambda: m.one(z))
    return m.other(z)


ALIGNMENT: dict[str, tuple[Callable[[], nn.Module], str, list[str], tuple[str, Any]]] = {
    "tensors": (lambda: Does(_reads), "sin", ["sin_2"], ("Alignment._same_reads", lambda self, node, event: {})),
    "what graphs hand on": (lambda: Does(_reads), "sin", ["sin_2"], ("Alignment.ids_of", lambda self, n: [None] * 9)),
    "functions": (lambda: Does(_callers), "sin", ["sin_4"], ("_caller_of", lambda node: None)),
    "shapes": (lambda: Does(_shapes), "cos", ["cos_2"], ("_same_values", lambda node, event: True)),
    "numbers": (lambda: Does(_constants), "cumsum", ["cumsum_2"], ("_same_constants", lambda node, event: True)),
    "modules": (
        lambda: Does(_modules, one=cosine, other=cosine),
        "cos",
        ["cos_2"],
        ("Alignment._same_module", lambda self, node, address: True),
    ),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("criterion", ALIGNMENT)
def test_each_criterion_of_the_alignment_tells_ops_apart(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, keep, expected, (guard, without) = ALIGNMENT[criterion]
    assert labels(make, keep) == expected
    if criterion != "functions":  # by which these would be told apart too
        monkeypatch.setattr("fastrec.engines.compiled.alignment._caller_of", lambda node: None)
        assert labels(make, keep) == expected
    monkeypatch.setattr(f"fastrec.engines.compiled.alignment.{guard}", without)
    assert labels(make, keep) != expected


def test_what_another_recorder_added_is_no_op(monkeypatch: pytest.MonkeyPatch) -> None:
    def copies(m: Any, x: Tensor) -> Tensor:
        y = x.sin()
        y.mul_(2)
        return y.cos()

    def found() -> Any:
        torch._dynamo.reset()
        run = torch.compile(Does(copies), backend="eager")
        with torch.no_grad(), Recorder(run, keep_op=["clone", "cos"]) as inner, Recorder(run, keep_op="sin"):
            run(X)
        return [record.ctx.label for record in inner.recording]

    assert found() == ["cos_1"]
    monkeypatch.setattr("fastrec.engines.compiled.alignment.ADDED", "other")
    try:
        assert found() != ["cos_1"]
    except UnsupportedModelError:
        pass
