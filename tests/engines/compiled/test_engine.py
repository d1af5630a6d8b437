"""The compiled engine records what the eager one does, from code that goes on running compiled."""

import copy
import gc
import itertools
import warnings
import weakref
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from fastrec import CaptureSpec, FastrecWarning, Recorder
from fastrec._errors import OptionError, SessionError, UnsupportedModelError
from fastrec.predicates import every, module_type, op, shape
from tests.helpers.compiling import EVERYTHING
from tests.helpers.compiling import fresh_dynamo as fresh_dynamo
from tests.helpers.models import MODELS, mlp
from tests.helpers.naive import tensors_in


def told(recording: Any) -> list[Any]:
    """All that a recording tells about its records, but for times and raw names."""
    return [
        (
            record.ctx.kind,
            record.ctx.site,
            record.ctx.label,
            record.ctx.layer_type,
            record.ctx.module_type,
            record.ctx.module_stack,
            record.ctx.pass_index,
            record.ctx.op_index,
            record.ctx.event_index,
            [event.label for event in record.ctx.recent_events],
            record.ctx.tensor_shape,
            record.ctx.tensor_dtype,
            record.ctx.tensor_requires_grad,
        )
        for record in recording
    ]


def both(model: nn.Module, passes: list[Tensor], backend: str = "eager", **options: Any) -> tuple[Any, Any]:
    """The recordings of the same passes by the eager engine and by the compiled one."""
    twin = copy.deepcopy(model)
    with Recorder(twin, **options) as eager:
        outputs = [seeded(twin, x) for x in passes]
    compiled = torch.compile(model, backend=backend)
    with Recorder(compiled, **options) as rec:
        again = [seeded(compiled, x) for x in passes]
    for given, expected in zip(again, outputs, strict=True):
        for (_, one), (_, other) in zip(tensors_in(given), tensors_in(expected), strict=True):
            torch.testing.assert_close(one, other)
    return eager.recording, rec.recording


def seeded(model: Any, x: Tensor) -> Any:
    torch.manual_seed(len(x))
    return model(x.clone())


def assert_same(found: Any, expected: Any) -> None:
    assert told(found) == told(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.activation, other.activation)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("residual", "recurrent")])
def test_records_what_the_eager_engine_records(name: str) -> None:
    make, size = MODELS[name]
    torch.manual_seed(0)
    x = torch.randn(size)
    eager, compiled = both(make(), [x, -x, x], **EVERYTHING)
    assert len(eager) > 10
    assert_same(compiled, eager)


def test_what_falls_between_graphs_is_named() -> None:
    with pytest.warns(FastrecWarning, match="'/add_2': not recorded, because it falls between the compiled graphs"):
        eager, compiled = both(MODELS["residual"][0](), [torch.randn(3, 4)], **EVERYTHING)
    expected = [record for record in eager if record.ctx.site != "/add_2"]
    assert_same(compiled, expected)


def test_a_model_that_torch_does_not_compile_warns() -> None:
    inner = nn.Linear(4, 4)
    inner.forward = torch.compiler.disable(inner.forward)  # type: ignore[method-assign]
    model = torch.compile(nn.Sequential(inner), backend="eager")
    with pytest.warns(FastrecWarning, match="no compiled graph ran"), Recorder(model, keep_module=True) as rec:
        model(torch.randn(2, 4))
    assert len(rec.recording) == 0


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.side = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lin(x).relu()
        if x.sum() > 3:
            x = self.side(x.sin()).relu()
        for _ in range(int(x.abs().sum()) % 3):
            x = (self.lin(x) * 0.5).relu()
        return self.side(x).relu()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_several_graphs_record_in_order_whatever_way_a_pass_takes() -> None:
    torch.manual_seed(0)
    passes = [torch.randn(3, 4) * scale for scale in (0.1, 3, 1, 5, 0.1, 2, 3, 7)]
    eager, compiled = both(Branches(), passes, **EVERYTHING)
    assert len({len(list(eager.iter_pass(i))) for i in range(8)}) > 2, "the passes should take several ways"
    assert_same(compiled, eager)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_graph_that_torch_compiles_twice_is_followed_once() -> None:
    class Item(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.lin(x)
            y = y.sin() if y.sum().item() > 0 else y.cos()
            return y.relu()

    # From the second number on it is an input, which aot_eager finds out only after the backend was called.
    eager, compiled = both(Item(), [torch.randn(3, 4) for _ in range(4)], "aot_eager", **EVERYTHING)
    assert_same(compiled, eager)


def test_new_shapes_compile_anew_and_dynamic_ones_do_not() -> None:
    passes = [torch.randn(n, 4) for n in (3, 3, 5, 7, 9)]
    eager, compiled = both(mlp(), passes, **EVERYTHING)
    assert_same(compiled, eager)
    assert counters["stats"]["unique_graphs"] == 2  # the second one for any size

    counters.clear()
    model = mlp()
    with Recorder(torch.compile(model, backend="eager", dynamic=True, fullgraph=True), keep_op="tanh") as rec:
        for x in passes:
            rec.log(x)
    assert [record.ctx.tensor_shape for record in rec.recording] == [(n, 8) for n in (3, 3, 5, 7, 9)]
    assert counters["stats"]["unique_graphs"] == 1


def test_the_users_code_runs_again_after_the_block_and_two_sessions_do_not_mix() -> None:
    compiled, x = torch.compile(mlp(), backend="eager"), torch.randn(3, 4)
    before = compiled(x)
    for n, (predicate, site) in enumerate([("tanh", "1/tanh"), ("relu", "3/relu"), ("tanh", "1/tanh")], start=2):
        with Recorder(compiled, keep_op=predicate) as rec:
            for _ in range(3):
                assert torch.equal(compiled(x), before)
        assert [record.ctx.site for record in rec.recording] == [site] * 3
        assert counters["stats"]["unique_graphs"] == n
        assert torch.equal(compiled(x), before)
        assert counters["stats"]["unique_graphs"] == n, "the user's own code was compiled again"


def test_more_sessions_than_the_recompile_limit_go_on_compiling() -> None:
    compiled, x = torch.compile(mlp(), backend="eager", fullgraph=True), torch.randn(3, 4)
    for n in itertools.count():
        with Recorder(compiled, keep_op="tanh") as rec:
            compiled(x)
        assert len(rec.recording) == 1
        if n > torch._dynamo.config.recompile_limit:  # called otherwise in a torch that the engine refuses
            break


def test_a_pass_that_keeps_nothing_runs_the_users_own_code() -> None:
    ran = []

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*given: Any) -> Any:
            out = graph.forward(*given)
            ran.append(len(out))
            return out

        return run

    compiled, x = torch.compile(mlp(), backend=backend), torch.randn(3, 4)
    compiled(x)
    with Recorder(compiled, keep_op=op("tanh") & every(3)) as rec:
        for _ in range(7):
            compiled(x)
    assert ran == [1, 2, 1, 1, 2, 1, 1, 2]
    assert [record.ctx.pass_index for record in rec.recording] == [0, 3, 6]


def test_rests_that_ask_about_values_are_asked_at_run_time() -> None:
    compiled = torch.compile(mlp(), backend="eager", dynamic=True)
    with Recorder(compiled, keep_op=op("tanh") & shape(5, ...)) as rec:
        for n in (3, 5, 4, 5):
            compiled(torch.randn(n, 4))
    assert [record.ctx.pass_index for record in rec.recording] == [1, 3]


def test_opaque_predicates_are_refused_with_a_way_out() -> None:
    compiled = torch.compile(mlp(), backend="eager")
    for options in ({"keep_op": lambda ctx: True}, {"keep_op": op("relu") | (lambda ctx: True)}):
        with pytest.raises(OptionError, match=r"structural\(fn\).*engine='eager'"), Recorder(compiled, **options):
            raise AssertionError("the block must not begin")


def test_gradients_of_values_are_refused() -> None:
    compiled = torch.compile(mlp(), backend="eager")
    gradients = CaptureSpec(save_gradient=True)
    with pytest.raises(OptionError, match="save_gradient=True.*engine='eager'"):
        with Recorder(compiled, keep_op="relu", capture=gradients):
            raise AssertionError("the block must not begin")
    with pytest.raises(OptionError, match="save_gradient=True.*engine='eager'"):
        with Recorder(compiled, keep_op=op("relu").with_(save_gradient=True)):
            compiled(torch.randn(3, 4))


def test_a_region_is_refused() -> None:
    compiled = torch.compile(mlp(), backend="eager")
    with Recorder(compiled, keep_op="relu") as rec:
        with pytest.raises(SessionError, match="'act': agent.act"), rec.region():
            raise AssertionError("the block must not begin")
        compiled(torch.randn(3, 4))


class Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = mlp()
        self.critic = nn.Linear(4, 1)

    def act(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(x).tanh(), self.critic(x)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_method_is_a_root(fullgraph: bool) -> None:
    agent, x = Agent(), torch.randn(3, 4)
    twin = copy.deepcopy(agent)
    agent.act = torch.compile(agent.act, backend="eager", fullgraph=fullgraph)
    before, act = agent.act(x), agent.act
    with Recorder({"act": agent.act}, keep_op="tanh", keep_module=True) as rec:
        for _ in range(2):
            torch.testing.assert_close(agent.act(x), before)
    with Recorder({"act": twin}, keep_op="tanh", keep_module=True) as eager:
        for _ in range(2):
            with eager.region("act"):
                twin.act(x)
    assert_same(rec.recording, eager.recording)
    assert counters["stats"]["unique_graphs"] == 2
    torch.testing.assert_close(agent.act(x), before)
    assert counters["stats"]["unique_graphs"] == 2 and agent.act is act


def test_a_compiled_method_that_is_no_root_is_refused() -> None:
    agent = Agent()
    agent.act = torch.compile(agent.act, backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"Recorder\(\{'act': model.act\}"):
        with Recorder(torch.compile(agent, backend="eager"), keep_op="tanh"):
            raise AssertionError("the block must not begin")


def test_attached_values_train_like_those_of_the_eager_engine() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.side = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.body(x).tanh()
            self.side(hidden).relu()
            return self.head(hidden)

    model, x = Two(), torch.randn(3, 4)
    gradients = []
    for make in (lambda m: m, lambda m: torch.compile(m, backend="aot_eager")):
        twin = copy.deepcopy(model)
        run = make(twin)
        with Recorder(run, keep_op="tanh", capture=CaptureSpec(keep_grad=True)) as rec:
            out = run(x)
            loss = out.square().sum() + rec.pop().stack("/tanh").square().sum()
            loss.backward()
        gradients.append([p.grad for p in twin.parameters()])
    assert gradients[0][-1] is None
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        torch.testing.assert_close(one, other)


class Heads(nn.Module):
    """Uses its layers in all the ways in which a loss may reach them or not."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.value = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.probe, self.cut, self.scale = nn.Linear(4, 2), nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x).tanh()
        self.probe(hidden.sin()).relu()
        with torch.no_grad():
            aside = self.cut(hidden)
        hidden = (hidden - 0.5).mul_(self.scale)
        return self.head(hidden), self.value(hidden.detach()) + aside.sum()


class BrokenHeads(Heads):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, value = super().forward(x)
        torch._dynamo.graph_break()
        return out.cos(), value.cos()


LOSSES = [["out", "value"], ["/tanh"], ["/relu"], ["/relu", "/sub"], ["out", "value", "/relu"], ["out", "value"]]
"""Which values a loss adds up; the same backward pass is run for each, one after the other."""


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("make", [Heads, BrokenHeads])
def test_parameters_get_a_gradient_where_they_get_one_without_compiled_code(make: Any) -> None:
    model, x = make(), torch.randn(3, 4)
    told: list[list[list[Tensor | None]]] = []
    for compiled in (False, True):
        twin = copy.deepcopy(model)
        run = torch.compile(twin, backend="aot_eager") if compiled else twin
        with Recorder(run, keep_op=["tanh", "relu", "sub", "sin"], capture=CaptureSpec(keep_grad=True)) as rec:
            out, value = run(x)
        values = {"out": out, "value": value} | {record.ctx.site: record.activation for record in rec.recording}
        told.append([])
        for summed in LOSSES:
            twin.zero_grad()
            sum(values[name].square().sum() for name in summed).backward(retain_graph=True)  # type: ignore[union-attr]
            told[-1].append([None if p.grad is None else p.grad.clone() for p in twin.parameters()])
    for summed, expected, found in zip(LOSSES, *told, strict=True):
        assert any(gradient is None for gradient in expected)
        assert [one is None for one in found] == [other is None for other in expected], summed
        torch.testing.assert_close(found, expected)


def test_outputs_that_no_loss_uses_give_what_they_give_without_a_recorder() -> None:
    model, x = Heads(), torch.randn(3, 4)
    gradients = []
    for record in (False, True):
        twin = copy.deepcopy(model)
        run = torch.compile(twin, backend="aot_eager")
        if record:
            with Recorder(run, keep_op=["tanh", "relu"], capture=CaptureSpec(keep_grad=True)):
                out, _ = run(x)
        else:
            out, _ = run(x)
        out.sum().backward()
        gradients.append([None if p.grad is None else p.grad for p in twin.parameters()])
    assert [one is None for one in gradients[1]] == [other is None for other in gradients[0]]
    torch.testing.assert_close(*gradients)


def test_plain_values_take_no_part_in_training() -> None:
    model, x = mlp(), torch.randn(3, 4)
    results = []
    for record in (False, True):
        twin = torch.compile(copy.deepcopy(model), backend="aot_eager")
        if record:
            with Recorder(twin, **EVERYTHING) as rec:
                twin(x).sum().backward()
        else:
            twin(x).sum().backward()
        results.append([p.grad for p in twin.parameters()])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert all(record.ctx.tensor_requires_grad for record in rec.recording if record.ctx.kind == "op")


def test_what_only_plain_values_use_gets_no_gradient() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.probe = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.body(x)
            self.probe(hidden)
            return hidden.sin()

    model = Aside()
    compiled = torch.compile(model, backend="aot_eager")
    with Recorder(compiled, keep_module="probe") as rec:
        compiled(torch.randn(3, 4)).sum().backward()
    assert len(rec.recording) == 1
    assert model.body.weight.grad is not None and model.probe.weight.grad is None


def test_a_session_lets_go_of_what_it_compiled() -> None:
    made = []

    class Holder:
        def __init__(self, graph: Any) -> None:
            self.graph = graph

        def __call__(self, *given: Any) -> Any:
            return self.graph.forward(*given)

    def backend(graph: Any, inputs: Any) -> Any:
        holder = Holder(graph)
        made.append(weakref.ref(holder))
        return holder

    compiled = torch.compile(mlp(), backend=backend)
    with Recorder(compiled, keep_op="tanh") as rec:
        compiled(torch.randn(3, 4))
    gc.collect()
    assert made[0]() is None
    assert len(rec.recording) == 1


def test_learning_leaves_random_state_buffers_and_attributes_alone() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop, self.calls, self.seen = nn.BatchNorm1d(4), nn.Dropout(0.5), 0, []

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen.append(self.calls)
            return self.drop(self.norm(x))

    results = []
    for record in (False, True):
        model = Counts()
        compiled = torch.compile(model, backend="eager")
        torch.manual_seed(0)
        if record:
            with Recorder(compiled, **EVERYTHING):
                out = [compiled(torch.ones(3, 4) * n) for n in range(3)]
        else:
            out = [compiled(torch.ones(3, 4) * n) for n in range(3)]
        results.append([*out, *model.buffers(), torch.get_rng_state(), torch.tensor([model.calls, *model.seen])])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_outputs_of_any_form_that_share_memory() -> None:
    class Forms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor, *, scale: float = 1, more: Any = None) -> dict[str, Any]:
            y = self.norm(self.lin(x)) * scale
            z = y.sin()
            z[0] = 1
            z.view(-1)[1:3].add_(2)
            pair = y, [z, z.t()]
            return {"y": y, "pair": pair, "given": x, "n": 3, "most": y.max(1), "more": more and more["t"] + z}

    options: list[dict[str, Any]] = [{}, {"scale": 2.0}, {"more": {"t": torch.ones(4)}}, {}]
    results = []
    for record in ("eager", "compiled", None):
        torch.manual_seed(0)
        model = Forms()
        run = model if record == "eager" else torch.compile(model, backend="aot_eager")
        with Recorder(run, **EVERYTHING) if record else nullcontext() as rec:
            outputs = [run(torch.arange(12.0).reshape(3, 4) + n, **each) for n, each in enumerate(options)]
        sum(out["y"].sum() + out["pair"][1][0].sum() for out in outputs).backward()  # type: ignore[union-attr]
        results.append([*outputs, *model.buffers(), *(p.grad for p in model.parameters())])
        if record == "eager":
            expected = rec.recording  # type: ignore[union-attr]
        elif record:
            assert_same(rec.recording, expected)  # type: ignore[union-attr]
    for found in results[1:]:
        for (_, one), (_, other) in zip(tensors_in(found), tensors_in(results[0]), strict=True):
            torch.testing.assert_close(one, other)


def test_module_types_are_those_of_the_model() -> None:
    eager, compiled = both(mlp(), [torch.randn(3, 4)], keep_module=module_type("Linear"))
    assert [record.ctx.label for record in compiled] == [record.ctx.label for record in eager] == ["0:1", "2:1", "4:1"]


def test_nothing_is_said_where_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both(mlp(), [torch.randn(3, 4)], keep_op="tanh")


@pytest.mark.parametrize("recorders", [1, 2])
def test_hooks_of_the_compiled_module_run_as_they_do_without_a_recorder(recorders: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    compiled, calls = torch.compile(model, backend="aot_eager"), []
    own = compiled.forward

    def before(module: nn.Module, args: Any) -> Any:
        calls.append("before")
        return (args[0] + 1,)

    def after(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        calls.append("after")
        if len(calls) == 2:
            compiled(args[0])  # a call inside of the hook is none of the recorder's
        return out * 2

    compiled.register_forward_pre_hook(before)
    compiled.register_forward_hook(after)
    x = torch.randn(2, 4)
    expected = compiled(x)
    calls.clear()
    with ExitStack() as stack:
        sessions = [stack.enter_context(Recorder(compiled, keep_op=op("tanh") & every(2))) for _ in range(recorders)]
        for _ in range(3):
            calls.clear()
            torch.testing.assert_close(compiled(x), expected)
            assert calls == ["before", "after"] * 2
    for session in sessions:
        kept = session.recording.stack("1/tanh")
        torch.testing.assert_close(kept[0] * 2, expected)
        assert len(kept) == 2
    assert compiled.forward is own


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
def test_global_hooks_run_once_more_for_the_compiled_module_as_without_a_recorder() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    compiled, names, x = torch.compile(model, backend="aot_eager"), [], torch.randn(2, 4)
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: names.append(type(module).__name__))
    try:
        compiled(x)
        expected = list(names)
        assert "OptimizedModule" in expected
        with Recorder(compiled, keep_op="tanh") as rec:
            compiled(x)  # learns
            names.clear()
            compiled(x)
        assert names == expected and len(rec.recording) == 2
    finally:
        handle.remove()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_what_the_caller_does_with_an_output_does_not_show(mode: Any) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.ReLU()), torch.randn(3, 4)
    compiled = torch.compile(model, backend="aot_eager")
    with Recorder(compiled, keep_op=["tanh", "relu"]) as rec, mode():
        for _ in range(12):
            out = compiled(x)
            popped, expected = rec.pop(), out.detach().clone()
            if not out.requires_grad:
                out.add_(1)
            assert torch.equal(popped.stack("2/relu")[0], expected)
            torch.testing.assert_close(popped.stack("1/tanh")[0].relu(), expected)


class Fails(nn.Module):
    """Fails outside of its graph, after it has run."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.fails = nn.Linear(3, 3), False

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.linear(x)).sum()
        torch._dynamo.graph_break()
        if self.fails:
            raise ValueError("broken")
        return y


@pytest.mark.parametrize("policy", ["keep", "drop"])
def test_what_is_held_of_a_pass_that_fails_is_kept_if_that_was_asked_for(policy: str) -> None:
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = Fails()
        called = torch.compile(model, backend="aot_eager") if compiled else model
        records = []
        with torch.no_grad(), Recorder(called, keep_op="tanh", on_forward_error=policy) as rec:
            for index in range(8):
                model.fails = index == 6
                try:
                    called(torch.full((2, 3), float(index)))
                except ValueError:
                    assert index == 6
                records += [(record.ctx.pass_index, record.activation) for record in rec.pop()]
        found.append(records)
    assert [index for index, _ in found[0]] == [index for index, _ in found[1]]
    assert (6 in [index for index, _ in found[1]]) is (policy == "keep")
    for (_, one), (_, other) in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
