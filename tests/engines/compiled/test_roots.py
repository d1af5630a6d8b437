"""Several recorders of the same compiled code each get what they would get alone."""

import copy
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from fastrec import CaptureSpec, FastrecWarning, Recorder
from fastrec._errors import SessionError, UnsupportedModelError
from fastrec.engines.compiled import roots
from fastrec.predicates import every, kind, op, phase
from tests.engines.compiled.guards import Does, cosine
from tests.helpers.compiling import fresh_dynamo as fresh_dynamo
from tests.helpers.models import MODELS, mlp
from tests.helpers.same_recordings import assert_same_recordings

EVERYTHING = {"keep_op": kind("op"), "keep_module": kind("module_enter", "module_exit")}


def recorded(model: Any, drive: Callable[[Any, list[Recorder]], Any], *options: dict[str, Any]) -> list[Any]:
    """What recorders that are open at once get; the last one to come is closed first."""
    with ExitStack() as stack:
        recorders = [stack.enter_context(Recorder(model, **each)) for each in options]
        drive(model, recorders)
    return [rec.recording for rec in recorders]


def check(make: Callable[[], nn.Module], drive: Callable[[Any, list[Recorder]], Any], *options: dict[str, Any]) -> None:
    model = make()
    expected = recorded(copy.deepcopy(model), drive, *options)
    for each in (options, options[::-1]):
        torch._dynamo.reset()
        found = recorded(torch.compile(copy.deepcopy(model), backend="aot_eager"), drive, *each)
        for one, other in zip(found if each is options else found[::-1], expected, strict=True):
            assert len(other)
            assert_same_recordings(one, other, loose=True)


def passes(model: Any, recorders: list[Recorder]) -> None:
    for index in range(5):
        torch.manual_seed(index)
        with torch.no_grad():
            model(torch.randn(3, 4))


def test_nested_recorders_get_the_same_as_alone() -> None:
    check(mlp, passes, {"keep_op": "tanh"}, {"keep_op": "tanh"})
    check(mlp, passes, {"keep_op": "tanh", "keep_module": True}, EVERYTHING)
    check(mlp, passes, {"keep_op": "linear"}, {"keep_op": "relu"}, {"keep_module": "0"})


def test_each_asks_what_it_rests_on() -> None:
    check(mlp, passes, {"keep_op": op("tanh") & every(2)}, {"keep_op": op("*") & every(3)})

    def pausing(model: Any, recorders: list[Recorder]) -> None:
        passes(model, recorders)
        with recorders[0].pause():
            passes(model, recorders)
        with recorders[1].phase("late"):
            passes(model, recorders)

    both = {"keep_op": "tanh"}, {"keep_op": op("tanh", "relu") & phase("late")}
    expected = recorded(mlp(), pausing, *both)
    found = recorded(torch.compile(mlp(), backend="eager"), pausing, *both)
    assert [len(each) for each in found] == [len(each) for each in expected] == [10, 10]


@pytest.mark.filterwarnings("ignore:.*matched no op type that ran")
@pytest.mark.parametrize("name", ["attention", "conv net", "shared"])
def test_what_one_recorder_adds_is_no_op_of_the_model(name: str) -> None:
    make, size = MODELS[name]
    model, x = make().eval(), torch.randn(size)
    alone = []
    for options in (EVERYTHING, {"keep_op": op("linear", "conv2d") | op("softmax", "*add*")}):
        with Recorder(copy.deepcopy(model), **options) as rec:
            rec.log(x.clone())
        alone.append((options, rec.recording))
    for (one, expected), (other, others) in (alone, alone[::-1], [alone[0]] * 2):
        compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
        with Recorder(compiled, **one) as first, Recorder(compiled, **other) as second:
            compiled(x.clone())
        assert_same_recordings(first.recording, expected, loose=True)
        assert_same_recordings(second.recording, others, loose=True)


def test_recorders_come_and_go_in_any_order() -> None:
    compiled, x = torch.compile(mlp(), backend="eager"), torch.randn(3, 4)
    compiled(x)
    one, other, third = (Recorder(compiled, keep_op=kept) for kept in ("tanh", "relu", "linear"))
    one.__enter__()
    compiled(x)
    other.__enter__()
    compiled(x)
    one.__exit__(None, None, None)
    compiled(x)
    third.__enter__()
    compiled(x)
    compiled(x)
    other.__exit__(None, None, None)
    compiled(x)
    third.__exit__(None, None, None)
    graphs = counters["stats"]["unique_graphs"]
    compiled(x)
    assert counters["stats"]["unique_graphs"] == graphs, "the user's own code was compiled again"
    assert [rec.recording.n_passes for rec in (one, other, third)] == [2, 4, 3]
    assert [len(rec.recording) for rec in (one, other, third)] == [2, 4, 9]


class Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = mlp()

    def act(self, x: Tensor) -> Tensor:
        return self.actor(x).tanh()


def test_recorders_of_a_compiled_method() -> None:
    agent, x = Agent(), torch.randn(3, 4)
    agent.act = torch.compile(agent.act, backend="eager", fullgraph=True)
    first, second = (Recorder({"act": agent.act}, keep_op=kept) for kept in ("tanh", "relu"))
    first.__enter__(), second.__enter__()
    out = agent.act(x)
    first.__exit__(None, None, None)
    assert torch.equal(agent.act(x), out)
    second.__exit__(None, None, None)
    graphs = counters["stats"]["unique_graphs"]
    assert torch.equal(agent.act(x), out) and counters["stats"]["unique_graphs"] == graphs + 1  # the user's own
    assert [record.ctx.site for record in first.recording] == ["act.actor.1/tanh", ":act/tanh"]
    assert [record.ctx.site for record in second.recording] == ["act.actor.3/relu"] * 2


class Aside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.probe, self.head = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        self.probe(hidden.tanh()).relu()
        return self.head(hidden).sin()


@pytest.mark.parametrize("kept", [("tanh", "relu"), ("relu", "tanh"), ("relu", "relu")])
def test_each_recorder_has_values_that_train(kept: tuple[str, str]) -> None:
    model, x, attached = Aside(), torch.randn(3, 4), CaptureSpec(keep_grad=True)
    told = []
    for make in (lambda m: m, lambda m: torch.compile(m, backend="aot_eager")):
        twin = copy.deepcopy(model)
        run = make(twin)
        with Recorder(run, keep_op=kept[0], capture=attached) as first:
            with Recorder(run, keep_op=kept[1], capture=attached) as second:
                out = run(x)
        losses = [out, first.recording[0].activation, second.recording[0].activation]
        for loss in (losses[:1], losses[1:2], losses[2:], losses[:2], losses):
            twin.zero_grad()
            sum(value.sum() for value in loss).backward(retain_graph=True)  # type: ignore[union-attr]
            told.append([None if p.grad is None else p.grad.clone() for p in twin.parameters()])
    for found, expected in zip(told[5:], told[:5], strict=True):
        assert [one is None for one in found] == [other is None for other in expected]
        torch.testing.assert_close(found, expected)


def test_one_keeps_values_attached_and_the_other_does_not() -> None:
    for attached in (0, 1):
        torch._dynamo.reset()
        model, x = Aside(), torch.randn(3, 4)
        run = torch.compile(model, backend="aot_eager")
        captures = [CaptureSpec(keep_grad=index == attached) for index in (0, 1)]
        with Recorder(run, keep_op="relu", capture=captures[0]) as first:
            with Recorder(run, keep_op="relu", capture=captures[1]) as second:
                run(x)
        values = [rec.recording[0].activation for rec in (first, second)]
        assert [value.requires_grad for value in values] == [attached == 0, attached == 1]
        values[attached].sum().backward()
        assert model.probe.weight.grad is not None and model.head.weight.grad is None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_several_graphs() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.lin(x).relu()
            if x.sum() > 3:
                x = self.lin(x.sin()).relu()
            return self.lin(x).relu()

    check(Breaks, passes, {"keep_op": "relu"}, {"keep_op": ["linear", "sin"], "keep_module": True})


def test_an_exception_reaches_both() -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        def run(*given: Any) -> Any:
            if any(each.shape == (3, 4) and not each.any() for each in given):
                raise ArithmeticError
            return graph.forward(*given)

        return run

    compiled = torch.compile(mlp(), backend=backend)
    with Recorder(compiled, keep_op="tanh") as first, Recorder(compiled, keep_op="relu") as second:
        compiled(torch.ones(3, 4))
        with pytest.raises(ArithmeticError):
            compiled(torch.zeros(3, 4))
        compiled(torch.ones(3, 4))
    assert [record.ctx.pass_index for record in first.recording] == [0, 2]
    assert [record.ctx.pass_index for record in second.recording] == [0, 2]


def test_one_that_halts_leaves_the_other_its_passes() -> None:
    compiled = torch.compile(mlp(), backend="eager")
    with Recorder(compiled, keep_op="relu") as outer:
        with Recorder(compiled, keep_op="tanh", halt=op("tanh"), returns_none=True) as inner:
            assert compiled(torch.ones(3, 4)) is None
        assert compiled(torch.ones(3, 4)) is not None
    assert inner.recording.halted and len(inner.recording) == 1
    assert [record.ctx.site for record in outer.recording][-1] == "3/relu"


def test_threads_with_a_recorder_each() -> None:
    compiled, opened, done = torch.compile(mlp(), backend="eager"), threading.Barrier(2), threading.Barrier(2)
    compiled(torch.ones(3, 4))
    found: dict[str, Any] = {}

    def work(kept: str) -> None:
        with Recorder(compiled, keep_op=kept) as rec:
            opened.wait()
            with LOCK:  # torch compiles in one thread at a time
                for _ in range(3):
                    compiled(torch.ones(3, 4))
            done.wait()
        found[kept] = rec.recording

    threads = [threading.Thread(target=work, args=(kept,)) for kept in ("tanh", "relu")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {kept: len(recording) for kept, recording in found.items()} == {"tanh": 6, "relu": 6}


LOCK = threading.Lock()


def test_the_same_code_twice_in_one_recorder_is_refused() -> None:
    compiled = torch.compile(mlp(), backend="eager")
    with pytest.raises(SessionError, match="same compiled code as another root"):
        with Recorder({"a": compiled, "b": compiled}, keep_op="relu"):
            raise AssertionError("the block must not begin")
    with Recorder(compiled, keep_op="relu") as rec:
        with pytest.raises(SessionError, match="give both recorders the same"):
            with Recorder({"act": compiled.forward}, keep_op="relu"):
                raise AssertionError("the block must not begin")
        compiled(torch.ones(3, 4))
    assert len(rec.recording) == 1


def test_what_is_missing_is_told_by_each() -> None:
    model = torch.compile(MODELS["residual"][0](), backend="eager")
    with Recorder(model, keep_op=["add", "relu"]), Recorder(model, keep_op=["add", "relu"]):
        with pytest.warns(FastrecWarning, match="'/add_2': not recorded") as told:
            model(torch.ones(3, 4))
    assert len(told) == 2


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("compiled_first", [True, False])
@pytest.mark.parametrize("engine", ["eager", "static"])
def test_a_compiled_model_is_recorded_beside_one_that_is_not(engine: str, compiled_first: bool, same: bool) -> None:
    torch._dynamo.reset()
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(2, 4)
    other = model if same else nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    recorders = Recorder(compiled, keep_op="tanh"), Recorder(other, keep_op="tanh", engine=engine)
    with ExitStack() as stack:
        for recorder in recorders if compiled_first else recorders[::-1]:
            stack.enter_context(recorder)
        expected = [compiled(x * i) for i in range(3)], [other(x * i) for i in range(3, 5)]
    for recorder, values in zip(recorders, expected, strict=True):
        assert torch.equal(recorder.recording.stack("1/tanh"), torch.stack(values))


def test_compiled_methods_that_are_no_roots_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Any:
        model = Does(cosine)
        model.act = torch.compile(model.does, backend="eager")
        return torch.compile(model, backend="eager")

    with pytest.raises(UnsupportedModelError, match="has a compiled method"), Recorder(make(), keep_op="cos"):
        raise AssertionError("the block must not begin")
    monkeypatch.setattr(roots, "check_methods", lambda *_: None)
    with pytest.warns(FastrecWarning, match="no pass was recorded"), Recorder(make(), keep_op="cos"):
        pass
