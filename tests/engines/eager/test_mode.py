"""What torch can do to a pass: transforms, checkpoints, modes, hooks, compiled parts."""

import warnings
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastrec import FastrecWarning, Recorder, record
from fastrec.predicates import module_input, op
from tests.contracts.engine import EVERYTHING
from tests.helpers.models import mlp
from tests.helpers.naive import assert_same_events, events_of, naive_events, same_bits, seeded


class Calls(nn.Module):
    """A linear layer, and whatever a test does with it."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def sites(recording: Any, pass_index: int = 0) -> list[str]:
    return [event.site for event in events_of(recording, pass_index)]


TRANSFORMS = {
    "vmap": lambda f, x: torch.vmap(f)(x),
    "grad": lambda f, x: torch.func.grad(lambda y: f(y).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,))[1],
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_calls_inside_of_a_transform_are_left_out_with_a_warning(name: str) -> None:
    model, x = mlp(), torch.randn(3, 4)
    expected = TRANSFORMS[name](model, x)
    with Recorder(model, **EVERYTHING) as rec:
        with pytest.warns(FastrecWarning, match="inside of a functorch transform"):
            assert torch.equal(TRANSFORMS[name](model, x), expected)
        model(x)
    assert rec.recording.n_passes == 1 and len(sites(rec.recording)) == 17


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("warm", [False, True])
def test_values_inside_of_a_transform_in_a_model_are_left_out(name: str, warm: bool) -> None:
    model = Calls(lambda m, x: TRANSFORMS[name](m.lin, x) + 1 if x.sum() > 0 else m.lin(x) + 1)
    x = torch.ones(3, 4)
    expected = model(x)
    with Recorder(model, **EVERYTHING) as rec, pytest.warns(FastrecWarning, match="inside of a functorch transform"):
        if warm:  # the same sites and shapes, outside of the transform
            model(-x)
        assert torch.equal(model(x), expected)
    found = events_of(rec.recording, int(warm))
    assert [event.site for event in found][-2:] == ["/add", ":out"]
    assert not any(event.site == "lin/linear" for event in found)
    assert torch.equal(found[-1].value, expected)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("region", [True, False])
@pytest.mark.parametrize("run", [lambda loss: loss.backward(), lambda loss: torch.autograd.backward([loss])])
def test_recomputation_is_no_event(reentrant: bool, region: bool, run: Any) -> None:
    model = Calls(lambda m, x: m.lin(checkpoint(m.lin, x, use_reentrant=reentrant)).relu().sum())
    with Recorder(model, **EVERYTHING) as rec:
        for _ in range(4):
            x = torch.randn(3, 4, requires_grad=True)
            if region:
                with rec.region():
                    run(model(x))
                    model.lin(x)
            else:
                run(model(x))
    expected = [*("lin/linear", "lin/linear", "/relu", "/sum"), *(["lin/linear"] if region else [])]
    for number in range(4):
        ops = [event.site for event in events_of(rec.recording, number) if event.kind == "op" and event.site[0] != ":"]
        assert ops == [site for site in expected if site != ":region/randn"]
    assert rec.recording.n_passes == 4
    assert model.lin.weight.grad is not None


@pytest.mark.parametrize("keep", [{"keep_module": True}, {"keep_op": "linear"}], ids=["modules", "ops"])
def test_what_a_gradient_inside_a_pass_computes_again_is_no_call(keep: dict[str, Any]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        y = checkpoint(m.lin, x, use_reentrant=False)
        (slope,) = torch.autograd.grad(y.tanh().sum(), x)
        return m.lin(slope)

    model = Calls(forward)
    inputs = [torch.randn(3, 4) for _ in range(4)]
    with Recorder(model, **keep) as rec:
        outs = [model(x) for x in inputs]
    found = rec.recording["lin" if "keep_module" in keep else "lin/linear"]
    assert len(found) == 2 * len(inputs)
    for i, (x, out) in enumerate(zip(inputs, outs, strict=True)):
        first, second = [record for record in found if record.ctx.pass_index == i]
        assert same_bits(first.activation, model.lin(x)) and same_bits(second.activation, out)
        assert [first.ctx.module_pass_index, second.ctx.module_pass_index] == [1, 2]


def test_gradients_through_a_checkpoint_are_those_without_a_recorder() -> None:
    model = Calls(lambda m, x: checkpoint(lambda y: m.lin(y).tanh(), x, use_reentrant=False).sum())
    x = torch.randn(3, 4)
    model(x).backward()
    expected, model.lin.weight.grad = model.lin.weight.grad, None
    with Recorder(model, keep_op="tanh"):
        model(x).backward()
    assert same_bits(model.lin.weight.grad, expected)


def test_inference_mode_values_are_normal_tensors() -> None:
    model = mlp()
    with torch.inference_mode(), Recorder(model, **EVERYTHING) as rec:
        out = model(torch.randn(3, 4))
    assert not any(record.activation.is_inference() for record in rec.recording)
    assert same_bits(rec.recording[""][0].activation, out)
    assert rec.recording.select(grad=False).n_passes == 1


def test_autocast_values_keep_their_dtype() -> None:
    model, x = mlp(), torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(x)
        recording = record(model, x, keep_op=True)
    assert [r.activation.dtype for r in recording["0/linear"]] == [torch.bfloat16]
    assert same_bits(recording["4/linear"][0].activation, expected)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sin() * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.cos() * 2


class Tagged(torch.Tensor):
    """A subclass that lets everything through."""


def _hooked(m: Calls, x: Tensor) -> Tensor:
    return m.lin(x) + 1


def hooks() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model[0].register_forward_hook(lambda module, args, out: out.exp())
    return model


def parametrized() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.orthogonal(model[1])
    nn.utils.parametrizations.spectral_norm(model[2])
    return model


MODELS: dict[str, Any] = {
    "autograd function": lambda: Calls(lambda m, x: Doubled.apply(m.lin(x)) + 1),
    "no_grad inside": lambda: Calls(lambda m, x: _without_gradients(m, x) + x),
    "user hooks": hooks,
    "parametrizations": parametrized,
    "generator": lambda: Calls(lambda m, x: sum(m.lin(y) for y in _halves(x))),
    "fx graph": lambda: torch.fx.symbolic_trace(mlp()),
    "tensor subclass": lambda: Calls(lambda m, x: m.lin(x.as_subclass(Tagged)).relu().as_subclass(Tensor) + 1),
    "dispatch packets": lambda: Calls(lambda m, x: torch.ops.aten.relu(m.lin(x)) + torch.ops.aten.add.Tensor(x, x)),
    "foreach": lambda: Calls(lambda m, x: torch._foreach_add([m.lin(x), x], 1)),
    "user mode": lambda: Calls(lambda m, x: _under_mode(m, x)),
    "default device": lambda: Calls(lambda m, x: _on_device(m, x)),
    "complex": lambda: Calls(lambda m, x: (torch.view_as_complex(m.lin(x).view(-1, 2)).conj() * 2j).imag),
    "jit script": lambda: Calls(lambda m, x: _scripted()(m.lin(x)) + 1),
}


def _without_gradients(m: Calls, x: Tensor) -> Tensor:
    with torch.no_grad():
        return m.lin(x).relu()


def _halves(x: Tensor) -> Iterator[Tensor]:
    yield x[:1] * 2
    yield x[1:2] * 3


class _Adds(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out * 2 if func is torch.tanh else out


def _under_mode(m: Calls, x: Tensor) -> Tensor:
    with _Adds():
        return torch.tanh(m.lin(x)) + nn.functional.gumbel_softmax(x, hard=True).sum()


def _on_device(m: Calls, x: Tensor) -> Tensor:
    with torch.device("cpu"):
        return torch.zeros(4) + m.lin(x) + nn.functional.normalize(x)


def _plus_one(x: Tensor) -> Tensor:
    return x.relu() + 1


@cache
def _scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(_plus_one)


@pytest.mark.parametrize("name", MODELS)
def test_what_torch_can_do_is_recorded_as_the_reference_does(name: str) -> None:
    model, x = MODELS[name](), torch.randn(2, 4)
    model.eval()
    with seeded():
        expected = naive_events(model, lambda: model(x))
    assert len(expected) > 3
    with Recorder(model, **EVERYTHING) as rec:
        for _ in range(2):
            with seeded():
                model(x)
    for number in range(2):
        assert_same_events(events_of(rec.recording, number), expected)


def test_what_backward_hooks_add_to_a_pass_is_recorded() -> None:
    model = nn.Linear(4, 4)
    model.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    out, recording = record(model, torch.randn(2, 4), keep_module="", keep_op=True, return_output=True)
    assert same_bits(recording[""][0].activation, out) and len(recording["linear_1"]) == 1


def test_a_subclass_of_tensor_does_not_notice_the_recorder() -> None:
    class Logs(torch.Tensor):
        names: list[str] = []

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.names.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs or {})

    model, x = mlp(), torch.randn(2, 4).as_subclass(Logs)
    out = model(x)
    before, Logs.names = Logs.names, []
    recording = record(model, x, **EVERYTHING)
    assert Logs.names == before
    assert torch.equal(recording[""][0].activation, out.as_subclass(Tensor))


def test_functional_call_passes_are_recorded() -> None:
    model, x = mlp(), torch.randn(3, 4)
    weights = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    with Recorder(model, keep_module="0") as rec:
        out = torch.func.functional_call(model, weights, (x,))
    assert torch.allclose(rec.recording[0].activation, x.sum(1, keepdim=True).expand(3, 8) + 1) and out.shape == (3, 2)


def test_a_call_method_of_its_own_is_no_hindrance() -> None:
    class Own(nn.Linear):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x * 2)

    model, x = nn.Sequential(Own(4, 4), nn.Tanh()), torch.randn(3, 4)
    assert [r.ctx.site for r in record(model, x, keep_op=True)] == ["/mul", "0/linear", "1/tanh"]


def test_custom_operators_are_ops() -> None:
    library = torch.library.Library("fastrec_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.define("halve_(Tensor(a!) x) -> Tensor(a!)")
    library.impl("twice", lambda x: x * 2, "CompositeImplicitAutograd")
    library.impl("halve_", lambda x: x.mul_(0.5), "CompositeImplicitAutograd")
    ops = torch.ops.fastrec_test
    model = Calls(lambda m, x: ops.halve_(ops.twice(m.lin(x).detach())).relu())
    recording = record(model, torch.randn(2, 4), keep_op=True)
    assert [r.ctx.site for r in recording] == ["lin/linear", "/detach", "/twice", "/halve", "/relu"]
    linear, _, twice, halved, _ = (r.activation for r in recording)
    assert torch.equal(twice, linear * 2) and torch.equal(halved, linear)


def test_compiled_code_elsewhere_is_left_alone() -> None:
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    model, other = mlp(), torch.compile(mlp(), backend="eager", fullgraph=True)
    x = torch.randn(3, 4)
    expected = other(x)
    counters.clear()
    with Recorder(model, keep_op="tanh") as rec:
        for _ in range(5):
            assert same_bits(other(x), expected)
            model(x)
            fresh = torch.compile(lambda y: y.sin() + 1, backend="eager", fullgraph=True)
            assert torch.equal(fresh(x), x.sin() + 1)
    assert not counters["graph_break"] and not counters["recompiles"]
    assert counters["stats"]["unique_graphs"] == 1
    assert same_bits(other(x), expected) and len(rec.recording) == 5


@pytest.mark.parametrize("engine", ["eager", "static"])
@pytest.mark.parametrize("watched", ["another model", "the same model", "a part of it"])
def test_what_is_compiled_meanwhile_is_compiled_in_one_piece(engine: str, watched: str) -> None:
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    model, x = mlp(), torch.randn(3, 4)
    expected = model(x)
    recorded = {"another model": mlp(), "the same model": model, "a part of it": model[0]}[watched]
    with Recorder(recorded, keep_op="linear", engine=engine) as rec:
        recorded(x)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        for _ in range(3):
            torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(compiled(x[:2]), expected[:2])
    compiled(x)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 2
    assert rec.recording.n_passes == 1


compiles = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def _compiled_child() -> tuple[nn.Module, Tensor]:
    torch._dynamo.reset()
    child = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), backend="eager", fullgraph=True)
    return nn.Sequential(nn.Linear(4, 4), child, nn.Tanh()), torch.randn(3, 4)


def _compiled_in_place() -> tuple[nn.Module, Tensor]:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 4), Calls(lambda m, x: m.lin(x).tanh()), nn.Tanh())
    model[1].compile(backend="eager", fullgraph=True)
    return model, torch.randn(3, 4)


@compiles
@pytest.mark.parametrize("make", [_compiled_child, _compiled_in_place])
def test_a_compiled_child_is_one_event_and_compiles_once(make: Any) -> None:
    model, x = make()
    expected = model(x)
    torch._dynamo.utils.counters.clear()
    with Recorder(model, keep_module=["0", "1"], keep_op=op("linear") & op("linear")) as rec:
        with pytest.warns(FastrecWarning, match="'1' is compiled.*the ops inside of it are not seen"):
            model(x)
        for _ in range(12):
            assert same_bits(model(x), expected)
    assert [event.site for event in events_of(rec.recording, 12)] == ["0/linear", "0", "1"]
    assert rec.recording.stack("1").shape == (13, 3, 4)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"] and not counters["recompiles"] and not counters["stats"]


@compiles
def test_a_compiled_module_that_is_no_child_runs_compiled_too() -> None:
    torch._dynamo.reset()
    other = torch.compile(nn.Linear(4, 4), backend="eager", fullgraph=True)
    model, x = Calls(lambda m, x: other(m.lin(x)).relu()), torch.randn(3, 4)
    expected = model(x)
    torch._dynamo.utils.counters.clear()
    out, recording = record(model, x, keep_op=True, return_output=True)
    assert same_bits(out, expected) and [r.ctx.site for r in recording] == ["lin/linear", "/relu"]
    assert not torch._dynamo.utils.counters["stats"]


@compiles
def test_a_function_that_is_compiled_runs_in_pieces_with_its_ops_in_view() -> None:
    torch._dynamo.reset()
    function = torch.compile(lambda y: y.sin() + 1, backend="eager")
    model, x = Calls(lambda m, x: function(m.lin(x)).relu()), torch.randn(3, 4)
    expected = model(x)
    for _ in range(2):
        with Recorder(model, keep_op=True) as rec:
            for _ in range(10):
                assert same_bits(model(x), expected)
        assert all(sites(rec.recording, i) == ["lin/linear", "/sin", "/add", "/relu"] for i in range(10))
    assert sum(torch._dynamo.utils.counters["graph_break"].values()) <= 1
    assert not torch._dynamo.utils.counters["recompiles"]


@compiles
def test_a_function_that_must_compile_in_one_piece_fails_loudly() -> None:
    torch._dynamo.reset()
    function = torch.compile(lambda y: y.sin() + 1, backend="eager", fullgraph=True)
    model, x = Calls(lambda m, x: function(m.lin(x)).relu()), torch.randn(3, 4)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="OpMode"), Recorder(model, keep_op=True):
        model(x)


def test_a_scripted_child_is_one_event() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    model, x = nn.Sequential(nn.Linear(4, 4), child), torch.randn(3, 4)
    with pytest.warns(FastrecWarning, match="'1' is a ScriptModule.*the ops inside of it are not seen"):
        recording = record(model, x, keep_op=True, keep_module="1")
    assert [r.ctx.site for r in recording] == ["0/linear", "1"]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_children_are_refused_only_where_they_are_kept() -> None:
    model = Calls(lambda m, x: torch.quantize_per_tensor(m.lin(x), 0.1, 0, torch.qint8).dequantize().relu())
    x = torch.randn(3, 4)
    assert len(record(model, x, keep_op="relu")) == 1


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("Categorical", lambda t: torch.distributions.Categorical(logits=t)),
        ("SimpleNamespace", lambda t: SimpleNamespace(logits=t)),
        ("set", lambda t: {t}),
        ("list_iterator", lambda t: iter([t])),
        ("SimpleNamespace", lambda t: (t, {"more": [SimpleNamespace(logits=t)]})),
    ],
)
@pytest.mark.parametrize("engine", ["eager", "static"])
def test_an_object_that_is_not_looked_into_is_told_once(name: str, make: Any, engine: str) -> None:
    class Actor(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return make(x * 2)

    class Head(nn.Module):
        def forward(self, value: Any) -> int:
            return 0

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor, self.head = Actor(), Head()

        def forward(self, x: Tensor) -> Any:
            return self.head(self.actor(x))

    model, x = Model(), torch.ones(2, 4)
    for keep, message in (
        ("actor", f"'actor' returned a {name}"),
        (module_input("head"), f"'head' was given a {name}"),
    ):
        with warnings.catch_warnings(record=True) as caught, Recorder(model, keep_module=keep, engine=engine):
            warnings.simplefilter("always")
            for _ in range(4):
                model(x)
        assert [message in str(warning.message) for warning in caught].count(True) == 1
