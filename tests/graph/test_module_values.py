"""What a module took and returned, also where no call of a function returned just that value."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec.graph import log_forward_pass, validate_history, validate_recording, validate_saved_activations
from fastrec.predicates import kind
from tests.graph.models import Calls


def by_row(x: Tensor) -> Tensor:
    y = x.log()
    y[0].zero_()
    return y


def by_chunk(x: Tensor) -> Tensor:
    y = x.log()
    first, _ = y.chunk(2)
    first.mul_(3)
    return y


def by_flat_view(x: Tensor) -> Tensor:
    y = x.log()
    y.view(-1).add_(1)
    return y


def by_transpose(x: Tensor) -> Tensor:
    y = x.log()
    y.T[1] = 5.0
    return y


def by_a_second_view(x: Tensor) -> Tensor:
    y = x.log()
    first, again = y[0], y[:1]
    first.add_(1)
    return again


def by_unbinding(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.log()
    for row in y.unbind():
        row.neg_()
    return y, y * 1


WRITERS = [by_row, by_chunk, by_flat_view, by_transpose, by_a_second_view]


class Outer(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.w = Calls(function)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w(x)
        return out + 1


@pytest.mark.parametrize("function", WRITERS)
def test_a_value_written_through_a_view_is_found_under_its_module(function: Callable[..., Tensor]) -> None:
    x = torch.full((2, 2), 3.0)
    want = function(x)
    for layers in ("all", ["w"]):
        history = log_forward_pass(Outer(function), x, layers_to_save=layers)
        assert torch.equal(history["w"].activation, want)
        assert history["w"].modules_exited == ["w:1"]
    assert validate_history(log_forward_pass(Outer(function), x))


@pytest.mark.parametrize("function", WRITERS)
def test_its_record_is_valid_and_a_wrong_one_is_not(function: Callable[..., Tensor]) -> None:
    x = torch.full((2, 2), 3.0)
    recording = fastrec.record(Outer(function), x, keep_module=["w", ""])
    assert validate_recording(Outer(function), recording, x)
    value = recording["w"][0].activation
    assert torch.equal(value, function(x))
    value[0] += 1
    assert not validate_recording(Outer(function), recording, x)


def test_each_leaf_has_its_own_value() -> None:
    x = torch.full((2, 2), 3.0)
    model = nn.Sequential(Calls(by_unbinding))
    recording = fastrec.record(model, x, keep_module=True)
    assert validate_recording(model, recording, x)
    assert validate_saved_activations(model, x)


def test_a_module_takes_what_was_written_before() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            y[0].zero_()
            return self.inner(y)

    model, x = Writes(), torch.ones(2, 2)
    recording = fastrec.record(model, x, keep_module=kind("module_enter") | kind("module_exit"))
    report = validate_recording(model, recording, x)
    assert report and report.n_replayed == 4, report


class Constant(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.register_buffer("b", torch.ones(3))
        self.p = nn.Parameter(torch.ones(3))
        self.attribute, self.what = torch.ones(3), what

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "vmap":
            return torch.vmap(torch.sin)(x)
        value: Tensor = getattr(self, self.what)
        return value


@pytest.mark.parametrize("what", ["b", "p", "attribute", "vmap"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_record_of_a_value_that_no_operation_computed_is_right_or_unchecked(what: str, inside: bool) -> None:
    model, x = nn.Sequential(Constant(what)) if inside else Constant(what), torch.randn(3, 3)
    recording = fastrec.record(model, x, keep_module=True)
    report = validate_recording(model, recording, x)
    assert report and bool(report.unchecked) == (what != "b"), report


def test_a_record_of_uninitialised_memory_is_unchecked() -> None:
    model, x = Calls(nn.functional.gumbel_softmax), torch.randn(4, 5)
    recording = fastrec.record(model, x, keep_op=True, random_seed=0)
    report = validate_recording(model, recording, x, random_seed=0)
    (entry,) = report.unchecked
    assert report and entry.name == "gumbelsoftmax_1/emptylike_1 at /gumbel_softmax/emptylike", report
