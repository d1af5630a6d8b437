"""Recorded values that a loss is made of."""

import copy
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrec import CaptureSpec, FastrecWarning, Recorder, load, record
from fastrec._errors import OptionError
from fastrec.predicates import dtype, every, module, op
from fastrec.sinks import RAMSink
from tests.contracts.engine import EVERYTHING
from tests.helpers.models import mlp
from tests.helpers.naive import same_bits


@pytest.fixture
def model() -> nn.Module:
    return mlp()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 4)


def gradients(model: nn.Module) -> list[Tensor | None]:
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    return found


def equal(mine: list[Tensor | None], theirs: list[Tensor | None]) -> bool:
    return all(a is b is None or same_bits(a, b) for a, b in zip(mine, theirs, strict=True))


OPTIONS: dict[str, dict[str, Any]] = {
    "train_mode": {"keep_op": ["tanh", "relu"], "train_mode": True},
    "capture": {"keep_op": ["tanh", "relu"], "capture": CaptureSpec(keep_grad=True)},
    "with_": {"keep_op": op("tanh", "relu").with_(keep_grad=True)},
    "opaque": {"keep_op": lambda c: CaptureSpec(keep_grad=True) if c.layer_type in ("tanh", "relu") else None},
    "modules": {"keep_module": module("1", "3").with_(keep_grad=True)},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_auxiliary_losses_have_the_gradients_of_those_by_hand(options: str, model: nn.Module, x: Tensor) -> None:
    with Recorder(model, **OPTIONS[options]) as rec:
        out = model(x)
        tanh, relu = (record.activation for record in rec.pop())
        (out.sum() + 0.1 * tanh.square().mean() + relu.abs().sum()).backward()
    mine = gradients(model)
    tanh = model[1](model[0](x))
    relu = model[3](model[2](tanh))
    (model[4](relu).sum() + 0.1 * tanh.square().mean() + relu.abs().sum()).backward()
    assert equal(mine, gradients(model))


def test_only_a_probe_learns_behind_a_frozen_backbone(x: Tensor) -> None:
    backbone, probe = mlp().requires_grad_(False), nn.Linear(8, 3)
    weights = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.SGD(probe.parameters(), lr=0.1)
    losses = []
    with Recorder(backbone, keep_module=module("3").with_(keep_grad=True)) as rec:
        for _ in range(20):
            backbone(x)
            loss = F.cross_entropy(probe(rec.pop().stack("3")[0]), torch.arange(5) % 3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(same_bits(value, weights[name]) for name, value in backbone.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in backbone.parameters())


def test_teacher_and_student_are_recorded_at_once(x: Tensor) -> None:
    teacher, student = mlp(), mlp()
    with (
        Recorder(student, keep_module="1", train_mode=True) as mine,
        Recorder({"teacher": teacher}, keep_module="teacher.1") as theirs,
    ):
        with torch.no_grad():
            teacher(x)
        student(x)
        wanted, got = theirs.pop().stack("teacher.1"), mine.pop().stack("1")
        assert got.requires_grad and not wanted.requires_grad
        F.mse_loss(got, wanted).backward()
    recorded = gradients(student)
    with torch.no_grad():
        wanted = teacher[1](teacher[0](x))
    F.mse_loss(student[1](student[0](x)), wanted).backward()
    assert equal(recorded, gradients(student)) and all(p.grad is None for p in teacher.parameters())


def test_teacher_and_student_are_roots_of_one_recorder(x: Tensor) -> None:
    teacher, student = mlp().requires_grad_(False), mlp()
    keep = module("student.1").with_(keep_grad=True) | module("teacher.1")
    with Recorder({"teacher": teacher, "student": student}, keep_module=keep) as rec:
        teacher(x), student(x)
        step = rec.pop()
        F.mse_loss(step["student.1"][0].activation, step["teacher.1"][0].activation).backward()
    assert student[0].weight.grad is not None


def test_attached_values_survive_in_place_writes(x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.ReLU(inplace=True), nn.Linear(4, 1))
    with Recorder(model, keep_op=op("linear").with_(keep_grad=True)) as rec:
        model(x)
        first = rec.pop()["0/linear"][0].activation
    assert torch.equal(first, model[0](x)) and (first < 0).any()
    first.sum().backward()
    assert torch.allclose(model[0].bias.grad, torch.full((4,), 5.0))


def test_a_cast_or_transformed_value_is_attached_too(model: nn.Module, x: Tensor) -> None:
    keep = op("tanh").with_(keep_grad=True, dtype=torch.float64, transform=lambda t: t.mean(1), save_raw=False)
    with Recorder(model, keep_op=keep) as rec:
        model(x)
        kept = rec.pop()[0]
        assert kept.activation is None and kept.transformed_activation.dtype == torch.float64
        kept.transformed_activation.sum().backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("how", ["pop", "retain passes", "retain steps"])
def test_a_long_training_loop_does_not_grow(how: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    retain = {} if how == "pop" else {"retain": 2}
    sizes = []
    with Recorder(model, keep_op="tanh", train_mode=True, **retain) as rec:
        for step in range(400):
            loss = model(torch.randn(5, 4)).square().mean()
            recording = rec.pop() if how == "pop" else rec.recording
            loss = loss + recording.last("1/tanh").activation.abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            del recording
            if how == "retain steps":
                rec.step(loss=loss.item())
            if step in (100, 399):
                gc.collect()
                sizes.append(sum(issubclass(type(each), Tensor) for each in gc.get_objects()))
                assert len(rec.recording) <= 3
    assert sizes[1] <= sizes[0] + 10


def test_many_attached_passes_bring_one_warning(model: nn.Module) -> None:
    with pytest.warns(
        FastrecWarning, match=r"more than 64 passes with attached graphs.*rec.pop\(\).*retain=n"
    ) as caught:
        with Recorder(model, keep_op="tanh", train_mode=True) as rec:
            for _ in range(64):
                model(torch.randn(1, 4))
            assert not caught.list
            for _ in range(10):
                model(torch.randn(1, 4))
            assert len(caught.list) == 1
            rec.pop()
    assert len(caught.list) == 1


@pytest.mark.parametrize("retain", [{}, {"retain": 100}])
def test_passes_that_are_popped_or_retained_bring_no_warning(model: nn.Module, retain: Any) -> None:
    with Recorder(model, keep_op="tanh", train_mode=True, **retain) as rec:
        for step in range(150):
            model(torch.randn(1, 4))
            if not retain and step % 50 == 0:
                rec.pop()


IMPOSSIBLE: dict[str, tuple[dict[str, Any], Callable[[], Any], str]] = {
    "no_grad": ({"train_mode": True}, torch.no_grad, "under torch.no_grad, where no graph is built"),
    "inference": ({"train_mode": True}, torch.inference_mode, "under torch.inference_mode, where no graph is built"),
    "a keep_grad predicate": ({"keep_op": op("tanh").with_(keep_grad=True)}, torch.no_grad, "where no graph is built"),
    "save_gradient": ({"capture": CaptureSpec(save_gradient=True)}, torch.no_grad, "(save_gradient=True) met"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_gradients_that_cannot_flow_fail_at_once(name: str, model: nn.Module, x: Tensor) -> None:
    options, mode, message = IMPOSSIBLE[name]
    with Recorder(model, **{"keep_op": "tanh", **options}) as rec:
        with mode(), pytest.raises(RuntimeError, match=re.escape(message)):
            model(x)
        model(x)
    assert len(rec.recording) == 1


def test_integers_have_no_gradients(x: Tensor) -> None:
    class Argmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2).argmax(1)

    model = Argmax()
    with pytest.raises(RuntimeError, match=r"a value of torch.int64, through which no gradient flows.*dtype\(...\)"):
        record(model, x.requires_grad_(), keep_op=op("argmax").with_(keep_grad=True))
    recording = record(model, x, keep_op=True, train_mode=True)
    assert [r.spec.keep_grad for r in recording] == [True, False]  # train_mode asks where there can be some
    assert [r.activation.requires_grad for r in recording] == [True, False]
    kept = record(model, x, keep_op=dtype(torch.float32).with_(keep_grad=True))
    assert [r.ctx.layer_type for r in kept] == ["mul"]


def test_a_gradient_reaches_only_what_requires_one(x: Tensor) -> None:
    model = nn.Linear(4, 2).requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require a gradient, so none will ever reach it"):
        record(model, x, keep_op="linear", capture=CaptureSpec(save_gradient=True))


def test_a_file_keeps_no_graphs(model: nn.Module) -> None:
    class FileSink:
        def open(self, catalog: Any) -> Any:
            raise AssertionError

        def column(self, meta: int, value: Tensor) -> Any:
            raise AssertionError

    for options in (
        {"keep_op": "tanh", "train_mode": True},
        {"keep_op": "tanh", "capture": CaptureSpec(keep_grad=True)},
        {"keep_op": "tanh", "capture": CaptureSpec(save_gradient=True)},
        {"keep_op": op("tanh").with_(keep_grad=True)},
        {"keep_op": op("relu") | (op("tanh").with_(save_gradient=True) & every(2))},
        {"keep_module": module("1").with_(keep_grad=True).with_(dtype=torch.float64)},
    ):
        with pytest.raises(OptionError, match=r"a file can't keep gradients; add RAM, as in sink=\[RAMSink\(\), 'run"):
            Recorder(model, sink=FileSink(), **options)
        Recorder(model, sink=[RAMSink(), FileSink()], **options)
    Recorder(model, keep_op=op("tanh").with_(keep_grad=True).with_(keep_grad=False), sink=FileSink())


def test_saved_gradients_are_those_that_a_hook_sees(model: nn.Module, x: Tensor) -> None:
    seen: list[Tensor] = []
    keep = op("tanh", "relu").with_(save_gradient=True)
    with Recorder(model, keep_op=keep) as rec:
        handle = model[1].register_forward_hook(lambda module, args, out: out.register_hook(seen.append) and None)
        for _ in range(3):
            model(x).square().sum().backward()
        handle.remove()
        recording = rec.recording
    assert [same_bits(r.gradient, g) for r, g in zip(recording["1/tanh"], seen, strict=True)] == [True] * 3
    assert same_bits(recording.stack("1/tanh", part="gradient"), torch.stack(seen))
    assert all(r.gradient.shape == r.activation.shape for r in recording["3/relu"])


def test_a_saved_gradient_is_the_sum_of_what_arrives(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op=op("tanh").with_(save_gradient=True, keep_grad=False)) as rec:
        out = model(x)
        assert rec.recording[0].gradient is None
        out.sum().backward(retain_graph=True)
        once = rec.recording[0].gradient.clone()
        out.sum().backward()
        assert torch.allclose(rec.recording[0].gradient, 2 * once)


def test_saved_gradients_change_neither_gradients_nor_values(model: nn.Module, x: Tensor) -> None:
    model(x).square().sum().backward()
    expected = gradients(model)
    with Recorder(model, keep_op=True, capture=CaptureSpec(save_gradient=True)):
        model(x).square().sum().backward()
    assert equal(gradients(model), expected)


def test_the_gradient_of_a_value_that_is_written_in_place_is_its_own(x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    with Recorder(model, keep_op=op("linear", "relu").with_(save_gradient=True)) as rec:
        model(x).sum().backward()
    linear, relu = rec.recording
    assert torch.equal(relu.gradient, torch.ones(5, 4))
    assert torch.equal(linear.gradient, (linear.activation > 0).float())


def test_gradients_of_a_pass_that_was_dropped_go_nowhere(x: Tensor) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.fail, self.out = nn.Linear(4, 4), False, torch.zeros(1)

        def forward(self, x: Tensor) -> Tensor:
            self.out = self.lin(x).tanh()
            if self.fail:
                raise ArithmeticError
            return self.out

    model = Fails()
    with Recorder(model, keep_op=op("tanh").with_(save_gradient=True)) as rec:
        model.fail = True
        with pytest.raises(ArithmeticError):
            model(x)
        failed, model.fail = model.out, False
        model(x * 2)
        failed.sum().backward()
        assert len(rec.recording) == 1 and rec.recording[0].gradient is None


def test_train_mode_records_everything_of_a_training_step(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, **EVERYTHING, train_mode=True) as rec:
        model(x).sum().backward(retain_graph=True)
        kept = rec.pop()
        assert len(kept) == 17
        kept.stack("3/relu").sum().backward()
    assert model[0].weight.grad is not None


def test_a_value_that_lost_its_gradient_says_so() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    recording = record(model, torch.ones(2, 4), keep_op=op("linear").with_(keep_grad=True) | op("tanh"))
    assert ["detached" in repr(kept) for kept in recording] == [False, True]
    lines = recording.summary().splitlines()
    assert lines[1].endswith("grad") and [line.endswith("detached") for line in lines[2:]] == [False, True]
    with torch.no_grad():
        recording = record(model, torch.ones(2, 4), keep_op=True)
    assert "detached" not in recording.summary() + repr(recording[0])


@pytest.mark.parametrize(
    "options",
    [
        {"train_mode": True},
        {"capture": CaptureSpec(keep_grad=True, dtype="float64")},  # type: ignore[arg-type]
        {"capture": CaptureSpec(keep_grad=True, transform=lambda value: value.mean(1))},
        {"capture": CaptureSpec(save_gradient=True)},
    ],
    ids=["train_mode", "cast", "transform", "gradients"],
)
def test_gradients_in_ram_and_values_in_a_file_together(options: Any, tmp_path: Path) -> None:
    model, optimised = nn.Sequential(nn.Linear(4, 3), nn.Tanh()), []
    with Recorder(model, keep_op="tanh", sink=[RAMSink(), tmp_path / "run.h5"], **options) as rec:
        for _ in range(3):
            out = model(torch.randn(2, 4))
            kept = rec.pop()[0]
            value = kept.activation if kept.transformed_activation is None else kept.transformed_activation
            assert value is not None
            if kept.spec.keep_grad:
                assert value.grad_fn is not None
                value.sum().backward()
            else:
                out.sum().backward()
                assert kept.gradient is not None and torch.equal(kept.gradient, torch.ones(2, 3))
            optimised.append(out.detach().clone())
    file = load(tmp_path / "run.h5")
    assert torch.equal(file.stack("1/tanh", part="activation").float(), torch.stack(optimised))
    assert not file.stack("1/tanh").requires_grad and model[0].weight.grad is not None


def test_a_file_alone_refuses_gradients_and_the_advice_works(tmp_path: Path) -> None:
    model, keep = nn.Linear(4, 3), op("linear").with_(keep_grad=True)
    with pytest.raises(
        OptionError, match=r"a file can't keep gradients; add RAM, as in sink=\[RAMSink\(\), 'run.h5'\]"
    ):
        record(model, torch.ones(2, 4), keep_op=keep, sink=tmp_path / "a.h5")
    recording = record(model, torch.ones(2, 4), keep_op=keep, sink=[RAMSink(), tmp_path / "b.h5"])
    assert recording[0].activation.requires_grad and len(load(tmp_path / "b.h5")) == 1
