"""Kept values are those of their moment, share no memory with others, and change no gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import CaptureSpec, Recorder
from fastrec.engines.compiled import outputs
from fastrec.predicates import op
from tests.engines.compiled.guards import Does, X, labels, parts
from tests.engines.compiled.guards import fresh_dynamo as fresh_dynamo


def _writes(m: Any, x: Tensor) -> Tensor:
    y = x.sin()
    z = y.view(-1)
    y.mul_(3)
    return z.cos()


def _returns(m: Any, x: Tensor) -> Tensor:
    return x.sin().view(-1)


def test_values_are_copied_before_the_graph_writes_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert labels(lambda: Does(_writes), ["sin", "view"]) == ["sin_1", "view_1"]
    monkeypatch.setattr(outputs.ExtraOutputs, "_next_writer", lambda self, value, place: None)
    assert labels(lambda: Does(_writes), ["sin", "view"]) == "AssertionError"


def test_values_share_no_memory_with_what_the_model_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    def safe() -> bool:
        torch._dynamo.reset()
        run = torch.compile(Does(_returns), backend="eager")
        with torch.no_grad(), Recorder(run, keep_op="sin") as rec:
            for index in range(3):
                run(X + index).zero_()
                value = rec.pop()[0].activation
                if not torch.equal(value, (X + index).sin()):
                    return False
        return True

    assert safe()
    monkeypatch.setattr(outputs, "storages_of", lambda value: set())
    monkeypatch.setattr("fastrec.session.pass_batch.have_sole_owner", lambda values: True)
    assert not safe()


def gradients(keep: Any, *, use: bool) -> list[bool]:
    """Which parameters get a gradient from the output, or from what is kept alone."""
    torch._dynamo.reset()
    model = Does(parts)
    run = torch.compile(model, backend="aot_eager")
    with Recorder(run, keep_op=keep) as rec:
        out = run(X)
    (rec.recording[0].activation if use else out).sum().backward()
    return [parameter.grad is not None for parameter in model.parameters()]


ATTACHED = CaptureSpec(keep_grad=True)


def test_no_gradient_flows_where_none_did(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = op("relu").with_(keep_grad=True)
    body, both = [True, True, False, False], [True] * 4
    assert gradients("relu", use=False) == gradients(attached, use=False) == body
    assert gradients(op("tanh").with_(keep_grad=True), use=True) == body
    assert gradients(attached, use=True) == both
    with monkeypatch.context() as patched:
        patched.setattr(outputs.GradientPaths, "watch", lambda self, arguments, out: None)
        assert gradients(attached, use=False) == both
    insert = outputs.ExtraOutputs._insert

    def without_detach(self: Any, method: str, value: Any, place: Any) -> Any:
        return value if method == "detach" else insert(self, method, value, place)

    monkeypatch.setattr(outputs.ExtraOutputs, "_insert", without_detach)
    assert gradients("relu", use=False) == both


def overwriting(graph: Any, inputs: Any) -> Any:
    """A backend that returns the same memory from each run, as CUDA graphs do."""
    memory: list[Tensor] = []

    def run(*given: Any) -> Any:
        out = graph.forward(*given)
        if [each.shape for each in out] != [each.shape for each in memory]:
            memory[:] = [torch.empty_like(each) for each in out]
        for kept, value in zip(memory, out, strict=True):
            kept.copy_(value)
        return tuple(each.view_as(each) for each in memory)

    return run


def test_values_are_copied_before_the_next_run_overwrites_them(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ["linear_1", "tanh_1", "linear_2", "relu_1", "linear_3"] * 5
    keep = op("linear", "tanh", "relu")

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    for grad in (False, True):
        assert labels(make, keep, passes=5, backend=overwriting, grad=grad) == expected

    def popped() -> bool:
        torch._dynamo.reset()
        model = make()
        run, found = torch.compile(model, backend=overwriting), []
        with torch.no_grad(), Recorder(run, keep_op="tanh") as rec:
            for index in range(6):
                run(X + index)
                found += list(rec.pop())
        return all(torch.allclose(record.activation, model[:2](X + i)) for i, record in enumerate(found))

    assert popped()
    monkeypatch.setattr("fastrec.session.pass_batch.have_sole_owner", lambda values: True)
    assert not popped()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_values_that_are_fed_later_are_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    def hands_over(m: Any, x: Tensor) -> Tensor:
        y = m.part(x)
        _write(y)
        return y.cos()

    @torch._dynamo.disable
    def _write(y: Tensor) -> None:
        y.mul_(5)

    def make() -> nn.Module:
        return Does(hands_over, part=lambda m, x: x.sin())

    def found() -> bool:
        torch._dynamo.reset()
        run = torch.compile(make(), backend="eager")
        with torch.no_grad(), Recorder(run, keep_module="part") as rec:
            for index in range(3):
                run(X + index)
        return (
            all(torch.allclose(record.activation, (X + index).sin()) for index, record in enumerate(rec.recording))
            and len(rec.recording) == 3
        )

    assert found()
    add = outputs.ExtraOutputs.add

    def shared(self: Any, value: Any, after: Any, *, attached: bool, unshared: bool = False) -> int:
        return add(self, value, after, attached=attached, unshared=False)

    monkeypatch.setattr(outputs.ExtraOutputs, "add", shared)
    assert not found()
