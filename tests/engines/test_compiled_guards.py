"""Each guard of the compiled engine is needed: without it a recording is wrong, or the model computes otherwise."""

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastrec import CaptureSpec, FastrecWarning, Recorder
from fastrec._errors import FastrecError, UnsupportedModelError
from fastrec.engines.compiled import engine as compiled
from fastrec.engines.compiled import graphs as _graphs
from fastrec.engines.compiled import outputs as _extra_outputs
from fastrec.engines.compiled import reference_run as _lesson
from fastrec.engines.compiled import roots as _compiled_roots
from fastrec.engines.compiled.graphs import CapturedGraph, GraphRoute, GraphTransition
from fastrec.engines.compiled.outputs import ExtraOutputs, GradientPaths
from fastrec.predicates import op
from tests.helpers.models import mlp
from tests.helpers.naive import seeded

X = torch.linspace(-1, 2, 16).reshape(4, 4)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastrecWarning)  # of what nobody uses
        yield
    torch._dynamo.reset()


class Does(nn.Module):
    """Runs a function, some of whose parts can be inside of modules of their own."""

    def __init__(self, does: Callable[[Any, Tensor], Any], **parts: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.lin, self.probe = nn.Linear(4, 4), nn.Linear(4, 4)
        self.does = does
        for name, part in parts.items():
            setattr(self, name, Does(part))

    def forward(self, x: Tensor) -> Any:
        return self.does(self, x)


def recorded(
    make: Callable[[], nn.Module], keep: Any, *, passes: int = 1, backend: Any = "aot_eager", grad: bool = False
) -> list[tuple[str, Tensor]]:
    """The labels and values of a compiled model's records; values that differ from the eager ones are an error."""
    with seeded():
        model = make()
    twin = copy.deepcopy(model)
    run = torch.compile(model, backend=backend)
    with torch.set_grad_enabled(grad):
        with Recorder(twin, keep_op=keep) as eager, seeded():
            for index in range(passes):
                twin(X + index)
        with Recorder(run, keep_op=keep) as rec, seeded():
            for index in range(passes):
                run(X + index)
    expected = {(record.ctx.pass_index, record.ctx.label): record for record in eager.recording}
    for record in rec.recording:
        other = expected[record.ctx.pass_index, record.ctx.label]
        assert record.ctx.tensor_requires_grad == other.ctx.tensor_requires_grad
        assert torch.allclose(record.activation, other.activation), record
    return [(record.ctx.label, record.activation) for record in rec.recording]


def labels(make: Callable[[], nn.Module], keep: Any, **options: Any) -> list[str] | str:
    """The labels of what was recorded, or what was wrong with it."""
    torch._dynamo.reset()
    try:
        return [label for label, _ in recorded(make, keep, **options)]
    except (AssertionError, FastrecError, RuntimeError, KeyError) as error:
        return type(error).__name__


def _break(value: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return value


@torch._dynamo.disable
def _sin_between(x: Tensor) -> Tensor:
    return x.sin()


@torch._dynamo.disable
def _between(function: Callable[[], Any]) -> None:
    """Run what no compiled graph holds."""
    function()


def _reads(m: Any, x: Tensor) -> Tensor:
    y = x * 2
    _between(lambda: x.sin())
    return y.sin()


def _callers(m: Any, x: Tensor) -> Tensor:
    y = _sin_between(x) + 1
    _sin_between(y)
    z = _sin_between(y)
    return z.sin()


def _shapes(m: Any, x: Tensor) -> Tensor:
    y = x.sin()
    z = _sin_between(y)
    _between(lambda: z[0].cos())
    return z.cos()


def _constants(m: Any, x: Tensor) -> Tensor:
    z = _sin_between(x)
    _between(lambda: z.cumsum(0))
    return z.cumsum(1)


def _modules(m: Any, x: Tensor) -> Tensor:
    z = _sin_between(x)
    _between(lambda: m.one(z))
    return m.other(z)


def _cos(m: Any, x: Tensor) -> Tensor:
    return x.cos()


ALIGNMENT: dict[str, tuple[Callable[[], nn.Module], str, list[str], tuple[str, Any]]] = {
    "tensors": (lambda: Does(_reads), "sin", ["sin_2"], ("Alignment._read_the_same", lambda self, node, event: {})),
    "what graphs hand on": (lambda: Does(_reads), "sin", ["sin_2"], ("Alignment.tokens", lambda self, n: [None] * 9)),
    "functions": (lambda: Does(_callers), "sin", ["sin_4"], ("_caller", lambda node: None)),
    "shapes": (lambda: Does(_shapes), "cos", ["cos_2"], ("_same_values", lambda node, event: True)),
    "numbers": (lambda: Does(_constants), "cumsum", ["cumsum_2"], ("_agree_in_constants", lambda node, event: True)),
    "modules": (
        lambda: Does(_modules, one=_cos, other=_cos),
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
        monkeypatch.setattr("fastrec.engines.compiled.alignment._caller", lambda node: None)
        assert labels(make, keep) == expected
    monkeypatch.setattr(f"fastrec.engines.compiled.alignment.{guard}", without)
    assert labels(make, keep) != expected


def test_what_only_compiled_code_computes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def more(m: Any, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            x = x.relu() + 1
        return (x * 2).relu()

    assert labels(lambda: Does(more), "relu") == "UnsupportedModelError"
    monkeypatch.setattr(GraphRoute, "_check", lambda self, aligned: None)
    assert labels(lambda: Does(more), "relu") != "UnsupportedModelError"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_lesson_that_took_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = itertools.cycle([0, 1])

    def wanders(m: Any, x: Tensor) -> Tensor:
        x = (x.sin() if _turn() else x.sin().cos()).relu()
        return _break(x).relu() if x.sum() > 20 else x

    @torch._dynamo.disable
    def _turn() -> bool:
        return next(turns) == 0

    def drive() -> None:
        run = torch.compile(Does(wanders), backend="eager")
        with torch.no_grad(), Recorder(run, keep_op="relu"):
            for index in range(8):
                run(X + index % 5)

    with pytest.raises(UnsupportedModelError, match="took another way|computes"):
        drive()
    monkeypatch.setattr(GraphTransition, "feeds_as", lambda self, other: True)
    monkeypatch.setattr(GraphRoute, "_check", lambda self, aligned: None)
    torch._dynamo.reset()
    drive()


@torch._dynamo.disable
def _drops(m: Any, x: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    return nn.functional.dropout(m.norm(x), 0.5) + m.calls


def test_the_lesson_leaves_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> nn.Module:
        model = Does(lambda m, x: _drops(m, x))
        model.norm = nn.BatchNorm1d(4)
        return model

    assert _after(make) == _after_eager(make)
    for guard in ("random_state_restored", "attributes_restored", "restored"):
        with monkeypatch.context() as patched:
            patched.setattr(_lesson, guard, lambda *_: nullcontext())
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
    monkeypatch.setattr(CapturedGraph, "asleep", lambda self, drawing: set())
    assert not torch.equal(out(record=True), out(record=False))


def _writes(m: Any, x: Tensor) -> Tensor:
    y = x.sin()
    z = y.view(-1)
    y.mul_(3)
    return z.cos()


def _returns(m: Any, x: Tensor) -> Tensor:
    return x.sin().view(-1)


def test_values_are_copied_before_the_graph_writes_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert labels(lambda: Does(_writes), ["sin", "view"]) == ["sin_1", "view_1"]
    monkeypatch.setattr(ExtraOutputs, "_next_writer", lambda self, value, place: None)
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
    monkeypatch.setattr(_extra_outputs, "storages_of", lambda value: set())
    monkeypatch.setattr("fastrec.session.pass_batch.have_sole_owner", lambda values: True)
    assert not safe()


def _parts(m: Any, x: Tensor) -> Tensor:
    y = m.lin(x)
    m.probe(y.tanh()).relu()
    return y.sin()


def gradients(keep: Any, *, use: bool) -> list[bool]:
    """Which parameters get a gradient from the output, or from what is kept alone."""
    torch._dynamo.reset()
    model = Does(_parts)
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
        patched.setattr(GradientPaths, "watch", lambda self, given, out: None)
        assert gradients(attached, use=False) == both
    then = ExtraOutputs._then

    def without_detach(self: Any, method: str, value: Any, place: Any) -> Any:
        return value if method == "detach" else then(self, method, value, place)

    monkeypatch.setattr(ExtraOutputs, "_then", without_detach)
    assert gradients("relu", use=False) == both


def test_plain_values_tell_that_they_carry_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ["tanh_1", "relu_1"]
    assert labels(lambda: Does(_parts), ["tanh", "relu"], grad=True) == expected
    make = GraphTransition.__init__

    class Unmarked(list[int]):
        def append(self, position: int) -> None:
            pass

    def unmarked(self: Any, links: Any) -> None:
        make(self, links)
        self.marked = Unmarked()

    monkeypatch.setattr(GraphTransition, "__init__", unmarked)
    assert labels(lambda: Does(_parts), ["tanh", "relu"], grad=True) == "AssertionError"


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
    add = ExtraOutputs.add

    def shared(self: Any, value: Any, after: Any, *, attached: bool, alone: bool = False) -> int:
        return add(self, value, after, attached=attached, alone=False)

    monkeypatch.setattr(ExtraOutputs, "add", shared)
    assert not found()


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
    with monkeypatch.context() as patched:  # the lesson is no part of what is checkpointed
        patched.setattr(_lesson, "saved_tensors_hooks", lambda *_: nullcontext())
        with pytest.raises(RuntimeError, match="number of tensors"):
            passes(lambda m: torch.compile(m, backend="aot_eager"))
    if kept == "tanh":
        assert passes(lambda m: torch.compile(m, backend="aot_eager"), reentrant=True)[0] == 2
        monkeypatch.setattr(compiled, "graph_task_id", lambda: -1)
        with pytest.raises(UnsupportedModelError, match="computes '1/tanh'"):  # a pass of it is expected
            passes(lambda m: torch.compile(m, backend="aot_eager"), reentrant=True)


def test_compiled_methods_that_are_no_roots_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Any:
        model = Does(_cos)
        model.act = torch.compile(model.does, backend="eager")
        return torch.compile(model, backend="eager")

    with pytest.raises(UnsupportedModelError, match="has a compiled method"), Recorder(make(), keep_op="cos"):
        raise AssertionError("the block must not begin")
    monkeypatch.setattr(_compiled_roots, "check_methods", lambda *_: None)
    with pytest.warns(FastrecWarning, match="no pass was recorded"), Recorder(make(), keep_op="cos"):
        pass


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
    monkeypatch.setattr(_graphs, "expand", lambda node: False)
    assert found() == []
