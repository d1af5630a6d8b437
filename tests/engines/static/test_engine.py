"""The static engine keeps the contract of engines, and tells the passes apart that break its promise."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastrec import CaptureSpec, Recorder
from fastrec._errors import BrokenPromiseError, FastrecError, OptionError
from fastrec.predicates import every, kind, module, op, phase
from fastrec.session.taps import AskTap, KeepTap
from tests.contracts.engine import EngineContract
from tests.helpers.models import Recursive, Shared, encoder, mlp
from tests.helpers.naive import same_bits, seeded
from tests.helpers.same_recordings import assert_same_recordings


class TestStaticEngine(EngineContract):
    engine = "static"


Call = Callable[..., Any]
Drive = Callable[[Any, Call, Recorder], None]


def both(make: Callable[[], Any], drive: Drive, *, popped: bool = False, **options: Any) -> list[Any]:
    """What the eager and the static engine record of the same passes; they have to be the same, and so the outputs."""
    found: list[list[Any]] = []
    given: list[list[Tensor]] = []
    for engine in ("eager", "static"):
        outputs: list[Tensor] = []
        recordings: list[Any] = []
        with seeded(3):
            model = make()
        with seeded(4), Recorder(model, engine=engine, **options) as rec:

            def call(*args: Any, called: Any = model, **kwargs: Any) -> Any:
                out = called(*args, **kwargs)
                outputs.append(out.detach().clone())  # noqa: B023
                if popped:
                    recordings.append(rec.pop())  # noqa: B023
                return out

            drive(model, call, rec)
        found.append(recordings or [rec.recording])
        given.append(outputs)
    for one, other in zip(*found, strict=True):
        assert_same_recordings(other, one)
    assert sum(map(len, found[0]))
    assert all(same_bits(one, other) for one, other in zip(*given, strict=True))
    return found[1]


def passes(count: int = 6, *, grad: bool = False) -> Drive:
    def drive(model: Any, call: Call, rec: Recorder) -> None:
        with torch.set_grad_enabled(grad):
            for index in range(count):
                call(torch.randn(3, 4) + index)

    return drive


POPPED = pytest.mark.parametrize("popped", [True, False], ids=["popped", "retained"])


class Forks(nn.Module):
    """Takes what way it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.act = nn.Tanh()
        self.other = nn.ReLU()
        self.way = "act"

    def forward(self, x: Tensor) -> Tensor:
        x = self.lin(x)
        if self.way == "act":
            return self.act(x)
        if self.way == "twice":
            return self.act(self.act(x))
        if self.way == "none":
            return x
        if self.way == "inside":
            return self.act(x.sin())
        if self.way == "pair":
            self.act.forward = lambda x: (x, x)  # type: ignore[assignment]
            return self.act(x)[0]
        return self.other(x)


BREAKS = {
    "twice": "'act' was called, where no more call was expected",
    "none": "'act' was not called",
    "other": "'other' was called",
    "pair": "'act' returned no tensor",
}


@pytest.mark.parametrize("way", BREAKS)
@POPPED
def test_a_pass_that_runs_otherwise_raises_and_names_the_first_difference(way: str, popped: bool) -> None:
    model, x = Forks(), torch.randn(3, 4)
    with torch.no_grad(), Recorder(model, keep_op="tanh", engine="static") as rec:
        kept = 0
        for _ in range(5):
            model(x)
            kept += len(rec.pop()) if popped else 0
        model.way = way
        with pytest.raises(BrokenPromiseError, match=BREAKS[way]):
            model(x)
        assert kept + len(rec.recording) == 5  # what came before stays
        model.way = "act"
        model.act.__dict__.pop("forward", None)
        model(x)
    assert kept + len(rec.recording) == 6


def test_what_no_kept_call_shows_is_seen_by_the_next_eager_pass() -> None:
    model, x = Forks(), torch.randn(3, 4)
    with Recorder(model, keep_op="tanh", engine="static", check_every=4) as rec:
        for _ in range(3):
            model(x)
        model.way = "inside"
        for _ in range(3):
            model(x)
        with pytest.raises(BrokenPromiseError, match="'/sin' came where 'act:in' was expected"):
            model(x)
    assert rec.recording.n_passes == 6


def test_a_model_that_never_runs_twice_alike_is_refused_in_its_first_passes() -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            for _ in range(self.count):
                x = x.sin()
            return x

    model = Grows()
    with Recorder(model, keep_op="sin", engine="static"), pytest.raises(BrokenPromiseError, match="'/sin_9' came"):
        for _ in range(20):
            model(torch.zeros(1))
    assert model.count < 20


def test_first_passes_may_differ_while_caches_fill() -> None:
    class Caches(nn.Module):
        mask: Any = None

        def forward(self, x: Tensor) -> Tensor:
            if self.mask is None:
                self.mask = torch.ones(4).cumsum(0)
            return (x * self.mask).relu()

    both(Caches, passes(5), keep_op="relu")


def test_a_swallowed_break_is_told_when_the_pass_ends() -> None:
    class Swallows(Forks):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            except FastrecError:
                return x

    model, x = Swallows(), torch.randn(3, 4)
    with Recorder(model, keep_op="tanh", engine="static") as rec:
        for _ in range(3):
            model(x)
        model.way = "other"
        with pytest.raises(BrokenPromiseError, match="'other' was called"):
            model(x)
    assert len(rec.recording) == 3


def test_a_module_that_another_of_its_class_replaces_goes_on_being_recorded() -> None:
    def drive(model: Any, call: Call, rec: Recorder) -> None:
        for index in range(8):
            if index == 4:
                model[1], model[0] = nn.Tanh(), nn.Linear(4, 8)
            call(torch.randn(3, 4))

    both(mlp, drive, keep_op="tanh")
    both(mlp, drive, keep_module=module("0") | module("1"))


def test_a_module_of_another_class_breaks_the_promise() -> None:
    model, x = mlp(), torch.randn(3, 4)
    with Recorder(model, keep_op="tanh", engine="static"):
        for _ in range(3):
            model(x)
        model[1] = nn.Sigmoid()
        with pytest.raises(BrokenPromiseError, match="'1' was called"):
            model(x)


@POPPED
def test_hooks_that_come_in_the_session_do_what_they_do(popped: bool) -> None:
    other, given = torch.full((3, 8), 0.5), torch.ones(3, 4)

    def drive(model: Any, call: Call, rec: Recorder) -> None:
        handles = []
        with torch.no_grad():
            for index in range(9):
                if index == 4:
                    handles.append(model[1].register_forward_hook(lambda m, a, out: other))
                    handles.append(model[3].register_forward_hook(lambda m, a, out: other))
                    handles.append(model[0].register_forward_pre_hook(lambda m, a: (given,)))
                if index == 7:
                    for handle in handles:
                        handle.remove()
                call(torch.randn(3, 4))

    both(mlp, drive, popped=popped, keep_op=["tanh", "relu"], keep_module="1")


def test_a_hook_that_runs_ops_in_a_watched_module_breaks_the_promise() -> None:
    model, x = mlp(), torch.randn(3, 4)
    with Recorder(model, keep_op="tanh", engine="static"):
        for _ in range(4):
            model(x)
        model[1].register_forward_hook(lambda m, a, out: out * 2)
        with pytest.raises(BrokenPromiseError, match="'1/mul' came where '1' was expected"):
            model(x)


@POPPED
def test_training_and_evaluation_are_told_apart(popped: bool) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh())

    def drive(model: Any, call: Call, rec: Recorder) -> None:
        for index in range(16):
            model.train(index // 4 % 2 == 0)
            with torch.set_grad_enabled(index % 8 > 3), rec.phase("abcd"[index // 4]):
                call(torch.randn(3, 4))

    both(make, drive, popped=popped, keep_op=True)
    both(make, drive, popped=popped, keep_op=op("tanh", "dropout"), keep_module=module("1") & phase("b", "d"))


@POPPED
def test_shapes_and_dtypes_may_change(popped: bool) -> None:
    def drive(model: Any, call: Call, rec: Recorder) -> None:
        with torch.no_grad():
            for index in range(12):
                if index == 8:
                    model.double()
                call(torch.randn(1 + index % 3, 4, dtype=torch.float64 if index > 7 else torch.float32))

    both(mlp, drive, popped=popped, keep_op=["tanh", "linear"])


@pytest.mark.filterwarnings("ignore::fastrec._errors.FastrecWarning")
@pytest.mark.parametrize("grad", [True, False])
def test_fused_modules_run_as_under_the_eager_engine(grad: bool) -> None:
    def drive(model: Any, call: Call, rec: Recorder) -> None:
        with torch.set_grad_enabled(grad):
            for index in range(9):
                model.train(index > 5)
                call(torch.randn(2, 3, 8))

    for options in (
        {"keep_op": "linear"},
        {"keep_op": ["dropout", "scaleddotproductattention"]},
        {"keep_module": module("0.layers.1") | module("1")},
        {"keep_module": module("0.layers.0.linear2")},
        {"keep_op": op("linear", "layernorm"), "keep_module": module("0.layers.0.*")},
    ):
        both(encoder, drive, **options)


class Writes(nn.Module):
    """Writes into what its modules gave, in the ways that it is told."""

    def __init__(self, *ways: str) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.act = nn.Tanh()
        self.same = nn.Identity()
        self.ways = ways

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.lin(x))
        y = h * 2
        h = self.same(h)
        for way in self.ways:
            WAYS[way](h)
        return self.act(self.lin(y))


WAYS: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda h: h.add_(1),
    "into a view": lambda h: h[:, 0].zero_(),
    "out": lambda h: torch.neg(h, out=h),
    "by numpy": lambda h: h.detach().numpy().__iadd__(1),
    "into its data": lambda h: h.data.add_(1),
}


@POPPED
@pytest.mark.parametrize("way", WAYS)
def test_values_are_those_of_their_moment_whatever_the_model_writes_later(way: str, popped: bool) -> None:
    for grad in (False, True) if way != "out" else (False,):
        both(lambda: Writes(), passes(grad=grad), popped=popped, keep_op="tanh")
        if not (grad and way in ("in place", "into a view")):
            both(lambda: Writes(way), passes(grad=grad), popped=popped, keep_op=["tanh", "linear"], keep_module="same")


@POPPED
def test_values_stay_when_the_loop_writes_into_what_it_gave_and_got(popped: bool) -> None:
    buffer = torch.zeros(3, 4)

    def drive(model: Any, call: Call, rec: Recorder) -> None:
        with torch.no_grad():
            for index in range(8):
                buffer.fill_(index)
                out = call(buffer)
                out.numpy()[:] = -100
                buffer.numpy()[:] = -100

    make = lambda: nn.Sequential(nn.Identity(), nn.Flatten(), nn.Tanh(), nn.Identity())  # noqa: E731
    both(make, drive, popped=popped, keep_op=True, keep_module=True)
    both(make, drive, popped=popped, keep_op=["tanh", "flatten"])
    both(make, drive, popped=popped, keep_module="0")
    both(make, drive, popped=popped, keep_module="3")


class Leaks(nn.Module):
    """Gives what it computes to others once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.act = nn.Tanh()
        self.leak: Callable[[Tensor], Any] | None = None
        self.got: Any = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.lin(x))
        if self.leak is not None:
            self.got = self.leak(h)
        return self.lin(h)


LEAKS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Any]]] = {
    "itself": (lambda h: h, lambda got: got.fill_(7)),
    "detached": (lambda h: h.detach(), lambda got: got.fill_(7)),
    "a view": (lambda h: h[1:], lambda got: got.fill_(7)),
    "its data": (lambda h: h.data, lambda got: got.fill_(7)),
    "its storage": (lambda h: h.untyped_storage(), lambda got: got.fill_(7)),
}


@pytest.mark.parametrize("how", LEAKS)
def test_a_popped_value_stays_when_others_have_it_and_write(how: str) -> None:
    model = Leaks()
    leak, write = LEAKS[how]
    with torch.no_grad(), Recorder(model, keep_op="tanh", engine="static") as rec:
        for _ in range(6):
            model(torch.randn(3, 4))
            rec.pop()
        model.leak = leak
        for _ in range(3):
            x = torch.randn(3, 4)
            model(x)
            recording = rec.pop()
            write(model.got)
            assert same_bits(recording[0].activation, model.lin(x).tanh())


def test_a_value_that_is_written_to_against_the_promise_is_an_error_and_never_a_wrong_record() -> None:
    for write in (lambda h: h.add_(1), lambda h: h.numpy().__iadd__(1)):
        model = Leaks()
        with torch.no_grad(), Recorder(model, keep_op="tanh", engine="static") as rec:
            for _ in range(6):
                model(torch.randn(3, 4))
                rec.pop()
            model.leak = lambda h: (write(h), None)[1]  # noqa: B023
            with pytest.raises(BrokenPromiseError, match="'act/tanh' was written to"):
                model(torch.randn(3, 4))
            for _ in range(4):  # learned anew
                x = torch.randn(3, 4)
                model(x)
                assert same_bits(rec.pop()[0].activation, model.lin(x).tanh())


def test_a_popped_recording_is_the_readers_own() -> None:
    model, x = mlp(), torch.randn(3, 4)
    with torch.no_grad(), Recorder(model, keep_op="tanh", engine="static") as rec:
        for _ in range(5):
            model(x)
            recording = rec.pop()
    value = recording[0].activation
    weight = torch.ones(8, requires_grad=True)
    (value * weight).sum().backward()
    assert recording.stack("1/tanh").shape == (1, 3, 8)
    assert recording[0].activation._version == 0 and not value.is_inference()


@POPPED
def test_passes_in_inference_mode(popped: bool) -> None:
    def drive(model: Any, call: Call, rec: Recorder) -> None:
        for index in range(10):
            with torch.inference_mode(index % 2 == 0), torch.no_grad():
                call(torch.randn(3, 4))

    both(mlp, drive, popped=popped, keep_op="tanh", keep_module="3")


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.lin(x))
        x = self.act(self.lin(x - 0.5))
        return F.relu(self.act(x + self.lin(x)))


@pytest.mark.filterwarnings("ignore::fastrec._errors.FastrecWarning")
@POPPED
@pytest.mark.parametrize("make", [Twice, Shared, Recursive])
def test_modules_that_are_called_many_times_or_call_themselves(make: Any, popped: bool) -> None:
    for options in (
        {"keep_op": ["relu", "sin"]},
        {"keep_op": "linear"},
        {"keep_module": True},
        {"keep_op": lambda ctx: ctx.layer_type == "linear" and ctx.module_pass_index == 2},
        {"keep_module": lambda ctx: ctx.module_pass_index % 2 == 0},
    ):
        both(make, passes(), popped=popped, **options)


def test_threads_have_passes_of_their_own_also_by_plan() -> None:
    model = mlp()
    with torch.no_grad(), Recorder(model, keep_op="tanh", engine="static") as rec:

        def work(number: int) -> None:
            with torch.no_grad():
                for _ in range(30):
                    model(torch.full((number + 1, 4), float(number)))

        work(0)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(rec.recording) == 150
    for record in rec.recording:
        number = len(record.activation) - 1
        expected = model[1](model[0](torch.full((number + 1, 4), float(number))))
        assert torch.allclose(record.activation, expected)


@pytest.mark.parametrize("others", [("static", "eager"), ("eager", "static"), ("static", "static")])
def test_recorders_on_one_model_and_on_a_part_of_it(others: tuple[str, str]) -> None:
    model = mlp()
    x = [torch.randn(3, 4) for _ in range(6)]
    with (
        Recorder(model, keep_op="tanh", engine=others[0]) as outer,
        Recorder(nn.Sequential(*model[:2]), keep_module=True, engine=others[1]) as inner,
    ):
        for each in x:
            model(each)
    with Recorder(model, keep_op="tanh") as expected:
        for each in x:
            model(each)
    assert_same_recordings(outer.recording, expected.recording)
    assert inner.recording.n_passes == 12  # each of its modules is called by itself


def test_what_checkpointing_runs_again_is_no_event() -> None:
    class Checkpoints(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            y = checkpoint(self.block, x, use_reentrant=False)
            (slope,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
            return self.block(slope)

    def drive(model: Any, call: Call, rec: Recorder) -> None:
        for _ in range(5):
            call(torch.randn(3, 4, requires_grad=True)).sum().backward()

    both(Checkpoints, drive, keep_op="tanh")
    both(Checkpoints, drive, keep_op="linear", keep_module=True)


@pytest.mark.parametrize("kept", ["drop", "keep"])
@POPPED
def test_a_pass_that_raises(kept: Any, popped: bool) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.Linear(4, 2))

    def drive(model: Any, call: Call, rec: Recorder) -> None:
        with torch.no_grad():
            for index in range(9):
                if index == 5:
                    model[2].unflattened_size = (3, 2)
                    with pytest.raises(RuntimeError, match="multiply"):
                        call(torch.randn(3, 4))
                    model[2].unflattened_size = (2, 2)
                call(torch.randn(3, 4))

    both(make, drive, popped=popped, keep_op=["tanh", "linear"], on_forward_error=kept)


def test_regions_and_several_roots() -> None:
    class Agent:
        def __init__(self) -> None:
            self.actor, self.critic = mlp(), Twice()

    def drive(model: Any, call: Call, rec: Recorder) -> None:
        roots = rec._roots
        for index in range(6):
            x = torch.randn(3, 4)
            with rec.region("act"):
                hidden = roots["actor"](x).relu()
                roots["critic"](x).sum() + hidden.sum()
            roots["actor"](x)
            roots["critic"].lin(x)
            if index > 3:
                with pytest.raises(ZeroDivisionError), rec.region("act"):
                    roots["actor"](x / 0 if index else 1 / 0)
                    raise ZeroDivisionError

    def make() -> Any:
        agent = Agent()
        return {"actor": agent.actor, "critic": agent.critic}

    for options in ({"keep_op": "tanh"}, {"keep_op": "relu"}, {"keep_module": True}):
        both(make, drive, **options)
    both(make, drive, keep_op=op("tanh") & every(2))


def test_halting_gradients_and_parents() -> None:
    def halts(model: Any, call: Call, rec: Recorder) -> None:
        for _ in range(6):
            assert rec.log(torch.randn(3, 4)) is None

    def trains(model: Any, call: Call, rec: Recorder) -> None:
        for _ in range(6):
            call(torch.randn(3, 4)).square().sum().backward()

    both(mlp, halts, keep_op=["linear", "tanh"], halt=op("tanh"))
    both(mlp, passes(), keep_op="linear", track_parents=True)
    both(mlp, passes(), keep_op=kind("input") | op("tanh"), include_source_events=True)
    found = both(mlp, trains, keep_op="tanh", capture=CaptureSpec(save_gradient=True, keep_grad=True))
    assert all(record.gradient is not None for record in found[0])


def test_attached_values_train_as_under_the_eager_engine() -> None:
    model = mlp()
    twin = copy.deepcopy(model)
    for each, engine in ((model, "static"), (twin, "eager")):
        with Recorder(each, keep_op="tanh", capture=CaptureSpec(keep_grad=True), engine=engine) as rec:
            for index in range(5):
                each(torch.full((3, 4), float(index)))
                rec.pop().stack("1/tanh").square().sum().backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert (mine.grad is None and theirs.grad is None) or same_bits(mine.grad, theirs.grad)


def test_a_pass_in_which_nothing_can_be_kept_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(), torch.randn(3, 4)
    with Recorder(model, keep_op=op("tanh", "relu") & every(10), engine="static") as rec:
        for _ in range(4):
            model(x)
        with monkeypatch.context() as patched:
            patched.setattr(AskTap, "__call__", _refuse)
            patched.setattr(KeepTap, "__call__", _refuse)
            for _ in range(6):
                model(x)
            with rec.pause():
                model(x)
            with pytest.raises(AssertionError):
                model(x)
        model(x)
    assert [record.ctx.pass_index for record in rec.recording] == [0, 0]


def _refuse(*_: Any) -> None:
    raise AssertionError


def test_only_modules_that_matter_are_watched() -> None:
    model, x = Twice(), torch.randn(3, 4)
    with Recorder(model, keep_op="linear", engine="static") as rec:
        for _ in range(3):
            model(x)
        schedule = next(iter(rec._engine._routes.values())).schedule
        scheduled = {key for key, way in schedule.ways.items() if way == 1}
    assert scheduled == {id(model.lin)} and not schedule.runs_eagerly


def test_options() -> None:
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(OptionError, match="check_every"):
            Recorder(mlp(), keep_op="tanh", engine="static", check_every=wrong)
    with pytest.raises(OptionError, match="'static'"):
        Recorder(mlp(), keep_op="tanh", engine="fast")


@pytest.mark.parametrize("index", [(slice(None), 0), (slice(None), slice(0, 3, 2)), (0,), (slice(None), None, 1)])
def test_a_view_of_a_batch_of_one_is_kept(index: Any) -> None:
    class Column(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)[index] * 2

    model, x = Column(), torch.randn(1, 4)
    with torch.no_grad(), Recorder(model, keep_op=True, engine="static") as rec:
        outs = [model(x + i) for i in range(5)]
    assert torch.equal(rec.recording.stack("/mul"), torch.stack(outs))
    assert torch.equal(rec.recording.stack("/getitem") * 2, torch.stack(outs))
