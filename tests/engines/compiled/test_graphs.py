"""Graphs compute what they compute without a recorder, and composites in them are opened."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import Recorder
from fastrec.engines.compiled import graphs
from fastrec.predicates import op
from tests.engines.compiled.guards import Does, X
from tests.engines.compiled.guards import fresh_dynamo as fresh_dynamo
from tests.helpers.naive import seeded


def test_random_numbers_that_nobody_uses_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def unused(m: Any, x: Tensor) -> Tensor:
        torch.rand_like(x).exp()
        return torch.rand_like(x)

    def out(record: bool) -> Tensor:
        torch._dynamo.reset()
        run = torch.compile(Does(unused), backend="aot_eager")
        with seeded(), torch.no_grad():
            if not record:
                return run(X)  # type: ignore[no-any-return]
            with Recorder(run, keep_op=op("randlike", "exp")):
                return run(X)  # type: ignore[no-any-return]

    assert torch.equal(out(record=True), out(record=False))
    monkeypatch.setattr(graphs.CapturedGraph, "unused_draws", lambda self, drawing: set())
    assert not torch.equal(out(record=True), out(record=False))


def test_composites_are_opened_where_something_inside_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> nn.Module:
        return nn.MultiheadAttention(4, 2)

    def found() -> list[str]:
        torch._dynamo.reset()
        model = make()
        run = torch.compile(model, backend="eager")
        with Recorder(run, keep_op="softmax") as rec:
            run(X, X, X)
        return [record.ctx.site for record in rec.recording]

    assert found() == ["/multi_head_attention_forward/softmax"]
    monkeypatch.setattr(graphs, "expand", lambda node: False)
    assert found() == []
