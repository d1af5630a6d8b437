"""The run that gives names to what compiled code computes leaves no traces."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastrec import Recorder
from fastrec._errors import UnsupportedModelError
from fastrec.engines.compiled import reference_run
from fastrec.predicates import op
from tests.engines.compiled.guards import Does, X
from tests.engines.compiled.guards import fresh_dynamo as fresh_dynamo
from tests.helpers.models import mlp
from tests.helpers.naive import seeded


@torch._dynamo.disable
def _drops(m: Any, x: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    return nn.functional.dropout(m.norm(x), 0.5) + m.calls


def test_the_run_leaves_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> nn.Module:
        model = Does(lambda m, x: _drops(m, x))
        model.norm = nn.BatchNorm1d(4)
        return model

    assert _after(make) == _after_eager(make)
    for guard in ("random_state_restored", "restored"):
        with monkeypatch.context() as patched:
            patched.setattr(reference_run, guard, lambda *_: nullcontext())
            assert _after(make) != _after_eager(make), guard


def _after(make: Callable[[], nn.Module]) -> Any:
    torch._dynamo.reset()
    model = make()
    run = torch.compile(model, backend="eager")
    with torch.no_grad(), seeded(), Recorder(run, keep_op="dropout"):
        out = [run(X) for _ in range(2)]
    return [each.tolist() for each in (*out, *model.buffers())]


def _after_eager(make: Callable[[], nn.Module]) -> Any:
    model = make()
    with torch.no_grad(), seeded():
        out = [model(X) for _ in range(2)]
    return [each.tolist() for each in (*out, *model.buffers())]


@pytest.mark.parametrize("kept", ["tanh", op("tanh").with_(keep_grad=True)], ids=["plain", "attached"])
def test_what_checkpointing_runs_again_is_no_pass(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(make: Callable[[Any], Any], *, reentrant: bool = False) -> tuple[int, list[Tensor]]:
        torch._dynamo.reset()
        with seeded():
            model = mlp()
        run, x = make(model), X.clone().requires_grad_()
        with Recorder(run, keep_op=kept) as rec:
            for _ in range(2):
                checkpoint(run, x, use_reentrant=reentrant).sum().backward()
        return rec.recording.n_passes, [x.grad, *(parameter.grad for parameter in model.parameters())]  # type: ignore[list-item]

    (n_passes, found), (_, expected) = passes(lambda m: torch.compile(m, backend="aot_eager")), passes(lambda m: m)
    assert n_passes == 2
    torch.testing.assert_close(found, expected)
    with monkeypatch.context() as patched:  # the reference run is no part of what is checkpointed
        patched.setattr(reference_run, "saved_tensors_hooks", lambda *_: nullcontext())
        with pytest.raises(RuntimeError, match="number of tensors"):
            passes(lambda m: torch.compile(m, backend="aot_eager"))
    if kept == "tanh":
        assert passes(lambda m: torch.compile(m, backend="aot_eager"), reentrant=True)[0] == 2
        monkeypatch.setattr("fastrec.engines.compiled.engine.graph_task_id", lambda: -1)
        with pytest.raises(UnsupportedModelError, match="computes '1/tanh'"):  # a pass of it is expected
            passes(lambda m: torch.compile(m, backend="aot_eager"), reentrant=True)
