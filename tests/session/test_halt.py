"""Stopping a pass after the event that a predicate matched."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import Recorder, record
from fastrec.predicates import every, module, op
from tests.models import mlp


class Net(nn.Module):
    """Tells which of its parts ran."""

    def __init__(self, how: Callable[["Net", Tensor], Any] | None = None) -> None:
        super().__init__()
        self.a, self.b, self.ran = nn.Linear(4, 4), nn.Linear(4, 4), 0
        self.how = how

    def forward(self, x: Tensor) -> Any:
        if self.how is not None:
            return self.how(self, x)
        x = self.a(x).relu()
        self.ran += 1
        return self.b(x).tanh()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4)


def sites(rec: Any) -> list[str]:
    return [record.ctx.site for record in rec.recording]


def test_the_pass_stops_after_the_event(x: Tensor) -> None:
    model = Net()
    with Recorder(model, keep_op=True, halt="relu") as rec:
        assert rec.log(x) is None
    assert sites(rec) == ["a/linear", "/relu"] and model.ran == 0
    assert rec.recording.halted == {0: "op('relu') matched 'relu_1' (/relu)"}
    assert rec.recording.n_passes == 1


def test_a_predicate_may_stop_the_pass_itself(x: Tensor) -> None:
    def until(ctx: Any) -> bool:
        return fastrec.halt("enough") if ctx.layer_type == "relu" else True

    model = Net()
    with Recorder(model, keep_op=until) as rec:
        assert rec.log(x) is None
        assert rec.log(x) is None
    assert sites(rec) == ["a/linear", "a/linear"] and rec.recording.halted == {0: "enough", 1: "enough"}
    out, recording = record(model, x, keep_op=until, return_output=True)
    assert out is None and len(recording) == 1


def test_a_module_event_may_stop_the_pass(x: Tensor) -> None:
    recording = record(Net(), x, keep_op=True, keep_module=True, halt=module("a"))
    assert [r.ctx.site for r in recording] == ["a/linear", "a"]


def test_only_some_passes_stop(x: Tensor) -> None:
    model = Net()
    with Recorder(model, keep_op="tanh", halt=op("relu") & every(2)) as rec:
        outs = [rec.log(x) for _ in range(4)]
    assert [out is None for out in outs] == [True, False, True, False]
    assert [r.ctx.pass_index for r in rec.recording] == [1, 3] and sorted(rec.recording.halted) == [0, 2]


def _except_exception(m: Net, x: Tensor) -> Any:
    try:
        return m.a(x).relu()
    except Exception:
        return m.b(x).tanh()


def _finally(m: Net, x: Tensor) -> Any:
    try:
        return m.a(x).relu()
    finally:
        m.b(x).tanh()


def _finally_more(m: Net, x: Tensor) -> Any:
    try:
        return m.a(x).relu()
    finally:
        m.b(x).tanh().relu()


def _context(m: Net, x: Tensor) -> Any:
    with torch.no_grad(), torch.autograd.profiler.record_function("net"):
        return m.a(x).relu()


@pytest.mark.parametrize("how", [_except_exception, _finally, _finally_more, _context])
def test_what_the_model_does_on_the_way_out_is_not_recorded(how: Any, x: Tensor) -> None:
    model = Net(how)
    with Recorder(model, keep_op=op("*"), halt=op("relu")) as rec:
        assert rec.log(x) is None
        model.how = None
        with rec.region():
            model(x)
    assert [r.ctx.site for r in rec.recording.iter_pass(0)][-2:] == ["a/linear", "/relu"]
    assert [r.ctx.site for r in rec.recording.iter_pass(1)] == ["a/linear", "/relu"]
    assert rec.recording.halted.keys() == {0, 1}


def test_a_halt_that_a_bare_except_swallows_still_ends_the_records(x: Tensor) -> None:
    def swallow(m: Net, x: Tensor) -> Any:
        try:
            return m.a(x).relu()
        except:  # noqa: E722
            return m.b(x).tanh()

    model = Net(swallow)
    with Recorder(model, keep_op=True, halt="relu") as rec:
        assert model(x).shape == (2, 4)
    assert sites(rec) == ["a/linear", "/relu"] and list(rec.recording.halted) == [0]


def test_control_goes_after_a_region_that_was_stopped(x: Tensor) -> None:
    model, reached = Net(), []
    with Recorder(model, keep_op=True, halt="relu") as rec:
        with rec.region("act"):
            model(x)
            reached.append("inside")
        reached.append("after")
    assert reached == ["after"] and sites(rec) == ["a/linear", "/relu"]


def test_a_call_by_a_framework_must_not_get_none_by_surprise(x: Tensor) -> None:
    model = Net()
    with Recorder(model, keep_op=True, halt="relu") as rec:
        with pytest.raises(RuntimeError, match=re.escape("open the recorder with halt=... and returns_none=True")):
            model(x)
    assert sites(rec) == ["a/linear", "/relu"]
    with Recorder(model, keep_op=True, halt="relu", returns_none=True) as rec:
        assert model(x) is None
        assert model(x) is None
    assert sites(rec) == 2 * ["a/linear", "/relu"]


def test_nothing_is_left_behind_and_the_next_pass_is_whole(x: Tensor) -> None:
    model, call = mlp(), nn.Module.__call__
    with Recorder(model, keep_op=True, keep_module=True, halt=op("tanh") & every(2)) as rec:
        for _ in range(4):
            rec.log(x)
            assert torch._C._len_torch_function_stack() == 0
    assert nn.Module.__call__ is call
    counts = [sum(r.ctx.pass_index == n for r in rec.recording) for n in range(4)]
    assert counts == [3, 11, 3, 11]


def test_a_halt_alone_is_a_session(x: Tensor) -> None:
    model = Net()
    with Recorder(model, halt="relu") as rec:
        assert rec.log(x) is None
    assert len(rec.recording) == 0 and len(rec.recording.halted) == 1


def test_two_recorders_stop_for_themselves(x: Tensor) -> None:
    model = Net()
    with Recorder(model, keep_op=True) as outer:
        with Recorder(model, keep_op=True, halt="relu") as inner:
            assert inner.log(x) is None
        model(x)
    assert sites(inner) == ["a/linear", "/relu"]
    assert [r.ctx.site for r in outer.recording][-4:] == ["a/linear", "/relu", "b/linear", "/tanh"]


def test_a_halt_outside_of_a_pass_is_an_ordinary_exception() -> None:
    with pytest.raises(BaseException, match="halted by a predicate"):
        fastrec.halt()
