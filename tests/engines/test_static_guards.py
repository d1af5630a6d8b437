"""Each guard of the static engine is needed: without it a recording is wrong, or a pass is refused that is right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastrec import Recorder
from fastrec._errors import FastrecError
from fastrec.engines.static import engine as static
from fastrec.engines.static import warmup as _static_lesson
from fastrec.engines.static.engine import StaticEngine
from fastrec.engines.static.schedule import _Calls
from fastrec.predicates import inside, op
from fastrec.session.pass_batch import UncopiedBatch
from fastrec.sinks.ram.pool import UncopiedPass
from tests.models import encoder
from tests.naive import seeded
from tests.same_recordings import assert_same_recordings


def differ(make: Callable[[], nn.Module], drive: Callable[[Any, Recorder], Any], **options: Any) -> bool:
    """Whether the eager and the static engine record different things, or only one of them records at all."""
    found = []
    for engine in ("eager", "static"):
        with seeded():
            model = make()
        try:
            with seeded(), torch.no_grad(), Recorder(model, engine=engine, **options) as rec:
                popped = drive(model, rec)
        except FastrecError:
            return True
        found.append(popped or [rec.recording])
    try:
        for one, other in zip(*found, strict=True):
            assert_same_recordings(one, other)
    except AssertionError:
        return True
    return False


class Model(nn.Module):
    """What it does after its op, and with what it computed, can be told."""

    def __init__(self, inside: Callable[[Tensor], Any] = id, later: Callable[[Tensor], Any] = id) -> None:
        super().__init__()
        self.act = _Act(inside)
        self.lin = nn.Linear(4, 4)
        self.later = later

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.lin(x))
        self.later(h)
        return self.lin(h)


class _Act(nn.Module):
    def __init__(self, inside: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        y = x.tanh()
        self.inside(y)
        return y


def write_unseen(value: Tensor) -> None:
    """Write without a trace in the version counter, and without an op that comes after the one whose value it is."""
    value.numpy().__iadd__(1)


def popping(model: Any, rec: Recorder, after: Callable[[], Any] = lambda: None) -> list[Any]:
    popped = []
    for index in range(8):
        model(torch.randn(3, 4) + index)
        popped.append(rec.pop())
        after()
    return popped


def leaking(model: Any, rec: Recorder) -> list[Any]:
    """The model gives away what it computed, from some pass on, and the loop writes into that after the pass."""
    got: list[Tensor] = []
    popped = []
    for index in range(8):
        model.later = id if index < 4 else lambda h: got.append(h.detach())
        model(torch.randn(3, 4))
        popped.append(rec.pop())
        for value in got:
            value.fill_(7)
    return popped


def test_values_that_others_have_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not differ(Model, leaking, keep_op="tanh")
    monkeypatch.setattr("fastrec.session.pass_batch.have_sole_owner", lambda values: True)
    assert differ(Model, leaking, keep_op="tanh")


class _AnyVersions(list[int]):
    def __ne__(self, other: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True


def test_versions_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def drive(model: Any, rec: Recorder) -> list[Any]:
        popped = popping(model, rec)
        model.later = lambda h: h.add_(1)
        with pytest.raises(FastrecError, match="was written to"):
            model(torch.ones(3, 4))
        return popped

    with torch.no_grad(), Recorder(Model(), keep_op="tanh", engine="static") as rec:
        drive(rec._roots[""], rec)
    make = UncopiedBatch.__init__

    def without(self: Any, *args: Any) -> None:
        make(self, *args)
        self._versions = _AnyVersions(self._versions)

    monkeypatch.setattr(UncopiedBatch, "__init__", without)
    model = Model()
    with torch.no_grad(), Recorder(model, keep_op="tanh", engine="static") as rec:
        popping(model, rec)
        model.later = lambda h: h.add_(1)
        x = torch.ones(3, 4)
        model(x)
        assert not torch.equal(rec.pop()[0].activation, model.lin(x).tanh())


@pytest.mark.parametrize("where", ["inside", "later"])
def test_values_are_compared_with_copies_in_the_first_passes(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = write_unseen if where == "inside" else lambda h: h.data.add_(1)

    def make() -> nn.Module:
        return Model(**{where: write})

    assert not differ(make, popping, keep_op="tanh")
    monkeypatch.setattr(_static_lesson, "_is_as_it_was", lambda *_: True)
    assert differ(make, popping, keep_op="tanh")


def test_parts_that_autograd_runs_again_are_told_from_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    class Checkpoints(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.clone().requires_grad_()
                y = checkpoint(self.block, x, use_reentrant=False)
                (slope,) = torch.autograd.grad(y.sum(), x)
            return self.block(slope)

    def drive(model: Any, rec: Recorder) -> None:
        for _ in range(5):
            model(torch.randn(3, 4))

    assert not differ(Checkpoints, drive, keep_op="tanh")
    monkeypatch.setattr(static, "graph_task_id", lambda: -1)
    assert differ(Checkpoints, drive, keep_op="tanh")


def test_fused_modules_are_watched_where_something_inside_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def drive(model: Any, rec: Recorder) -> None:
        model.eval()
        for _ in range(5):
            model(torch.randn(2, 3, 8))

    with pytest.warns(match="without its fused kernel"):
        assert not differ(encoder, drive, keep_module="0.layers.0.linear1")
    monkeypatch.setattr(_Calls, "_unfuse", lambda self: None)
    with pytest.warns(match="without its fused kernel"):
        assert differ(encoder, drive, keep_module="0.layers.0.linear1")


def test_passes_that_fuse_and_those_that_do_not_have_plans_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def drive(model: Any, rec: Recorder) -> None:
        model.eval()
        for index in range(12):
            model.requires_grad_(index // 4 != 1)
            with torch.enable_grad():
                model(torch.randn(2, 3, 8))

    kept = op("linear") & inside("1")  # its label counts what ran before it, but for what is inside of fused modules
    assert not differ(encoder, drive, keep_op=kept)
    monkeypatch.setattr(static, "is_fused_now", lambda module: False)
    assert differ(encoder, drive, keep_op=kept)


def test_an_op_is_not_taken_from_a_module_with_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    other = torch.ones(3, 4)

    def drive(model: Any, rec: Recorder) -> None:
        for index in range(8):
            if index == 4:
                model.act.register_forward_hook(lambda module, args, out: other)
            model(torch.randn(3, 4))

    assert not differ(Model, drive, keep_op="tanh")

    def take_anyway(self: Any, now: Any, eager: Any, module: Any, args: Any, kwargs: Any) -> Any:
        step, now.step = now.step, now.step.after
        out = module._call_impl(*args, **kwargs)
        self._take(now, step, out)
        return out

    monkeypatch.setattr(StaticEngine, "_watch", take_anyway)
    assert differ(Model, drive, keep_op="tanh")


def test_eager_passes_see_what_the_calls_do_not_show() -> None:
    class Changes(Model):
        more = False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.lin(x).tanh() if self.more else x)

    def drive(model: Any, rec: Recorder) -> None:
        for index in range(12):
            model.more = index > 6
            model(torch.randn(3, 4))

    assert differ(Changes, drive, keep_op=lambda ctx: ctx.site == "act/tanh", check_every=4)

    with torch.no_grad(), Recorder(Changes(), keep_module="act", engine="static") as rec:  # long before the next check
        drive(rec._roots[""], rec)
    assert len(rec.recording) == 12


class Slices(nn.Module):
    """One value keeps its shape, the other has one that its loop tells."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.then, self.rows = nn.Tanh(), nn.ReLU(), 3

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.first(x)[: self.rows] * 2).sum()


def test_values_in_a_batch_are_looked_at_for_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    def drive(model: Any, rec: Recorder) -> list[Any]:
        popped = []
        for index in range(9):
            model.rows = 3 if index < 6 else 2
            model(torch.randn(3, 4))
            popped.append(rec.pop())
        return popped

    assert not differ(Slices, drive, keep_op=["tanh", "relu"])
    monkeypatch.setattr("fastrec.session.pass_batch.tensors_guard", lambda values: lambda *others: True)
    assert differ(Slices, drive, keep_op=["tanh", "relu"])


def test_memory_of_other_libraries_is_no_bodys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays: list[Any] = []

    class Foreign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            arrays.append(x.numpy() * 2)
            return torch.from_numpy(arrays[-1])

    def drive(model: Any, rec: Recorder) -> list[Any]:
        popped = popping(model, rec)
        for array in arrays:
            array[:] = 7
        return popped

    def make() -> nn.Module:
        return nn.Sequential(Foreign(), nn.Tanh())

    assert not differ(make, drive, keep_module="0")
    for where in ("fastrec.session.pass_batch.own_their_storage", "fastrec.engines.static.warmup.own_their_storage"):
        monkeypatch.setattr(where, lambda values: True)
    assert differ(make, drive, keep_module="0")


class Orders(nn.Module):
    """Calls its parts in the order that it is told, and goes on where one of them raises."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Tanh(), nn.Sigmoid()])
        self.order = [0, 1]

    def forward(self, x: Tensor) -> Tensor:
        for index in self.order:
            x = self.parts[index](x)
        return x


ORDERS = {"in another order": [1, 0], "twice": [0, 1, 1], "not at all": [0]}


@pytest.mark.parametrize("order", ORDERS)
def test_calls_come_in_their_order_and_number(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def drive(model: Any, rec: Recorder) -> list[Any]:
        for index in range(8):
            model.order = ORDERS[order] if index == 5 else [0, 1]
            try:
                model(torch.ones(3, 4))
            except FastrecError:
                return []
        raise LookupError  # what was promised was broken, and nobody noticed

    def noticed() -> bool:
        with torch.no_grad(), Recorder(Orders(), keep_op=["tanh", "sigmoid"], engine="static") as rec:
            try:
                drive(rec._roots[""], rec)
            except LookupError:
                return False
        return True

    assert noticed()
    aside = StaticEngine._step_aside

    def go_on(self: Any, now: Any, *call: Any) -> Any:
        _, _, module, args, kwargs = call
        return module._call_impl(*args, **kwargs) if now.step.module is not module else aside(self, now, *call)

    monkeypatch.setattr(StaticEngine, "_step_aside", go_on)
    monkeypatch.setattr(StaticEngine, "_broken", lambda self, course, what: None)
    monkeypatch.setattr("fastrec.session.taps.PassRun.fail", lambda self, error: None)
    assert not noticed()


def test_a_full_pass_is_made_as_often_as_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changes(Model):
        more = False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sin().cos() if self.more else x)

    def passes() -> int:
        model = Changes()
        with torch.no_grad(), Recorder(model, keep_op="tanh", engine="static", check_every=3) as rec:
            for index in range(12):
                model.more = index > 4
                try:
                    model(torch.randn(3, 4))
                except FastrecError:
                    return rec.recording.n_passes
        return 12

    assert passes() < 9
    learn = StaticEngine._learn

    def never_again(self: Any, course: Any, lesson: Any, mode: Any) -> None:
        learn(self, course, lesson, mode)
        course.left = 1000 if course.plan is not None else 0

    monkeypatch.setattr(StaticEngine, "_learn", never_again)
    assert passes() == 12


def test_a_module_that_returns_no_tensor_breaks_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.pair = _Act(id), False

        def forward(self, x: Tensor) -> Tensor:
            self.act.forward = (lambda x: (x, x)) if self.pair else lambda x: x.tanh()  # type: ignore[assignment]
            out: Any = self.act(x)
            return out[0] if self.pair else out

    def drive() -> int:
        model = Pairs()
        with torch.no_grad(), Recorder(model, keep_module="act", engine="static") as rec:
            for index in range(6):
                model.pair = index == 4
                try:
                    model(torch.ones(3, 4))
                except FastrecError:
                    pass
        return rec.recording.n_passes

    assert drive() == 5

    monkeypatch.setattr(StaticEngine, "_fail", lambda self, now, what: None)
    monkeypatch.setattr(StaticEngine, "_take", lambda self, now, step, out: None)
    assert drive() == 6  # one of them without its record


class Gives(nn.Module):
    """Returns a leaf of autograd as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.ones(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight


class Mixed(nn.Module):
    """Computes some values that last until the pass ends, and some that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gives, self.last = nn.Tanh(), Gives(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        h = self.last(self.first(x) + 1).add_(0)
        return h + self.gives(h).sum()


def test_a_copy_that_is_held_tells_when_its_value_begins_to_require_a_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def drive(model: Any, rec: Recorder) -> list[Any]:
        popped = popping(model, rec)
        model.gives.weight.requires_grad_()
        return popped + popping(model, rec)

    assert not differ(Mixed, drive, keep_module=["first", "gives"])
    monkeypatch.setattr("fastrec.engines.static.engine.clone_like", lambda value: value.detach().clone())
    assert differ(Mixed, drive, keep_module=["first", "gives"])


def test_where_some_values_last_the_others_are_copied_at_their_event(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    hold = UncopiedBatch.__call__

    def holding(batch: UncopiedBatch, run: Any, values: list[Tensor], times: list[float]) -> None:
        hold(batch, run, values, times)
        held.append(isinstance(run.rows, UncopiedPass))

    monkeypatch.setattr(UncopiedBatch, "__call__", holding)
    keep = ["first", "last", ""]  # "" is the model's output, which its caller has
    assert not differ(Mixed, popping, keep_module=keep)
    assert held[-1]

    def with_parameter() -> nn.Module:
        model = Mixed()
        del model.gives.weight
        model.gives.weight = nn.Parameter(torch.ones(3))
        return model

    assert not differ(with_parameter, popping, keep_module=[*keep, "gives"])
    monkeypatch.setattr("fastrec.engines.static.engine.clone_like", lambda value: value)
    assert differ(Mixed, popping, keep_module=keep)
