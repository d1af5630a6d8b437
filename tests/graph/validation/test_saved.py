"""Validation says yes to what is right, and finds what was planted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import FastrecError
from fastrec.graph import (
    ModelHistory,
    Operation,
    get_model_metadata,
    log_forward_pass,
    validate_history,
    validate_saved_activations,
)
from tests.graph.models import Calls


class Varied(nn.Module):
    """Loops, statistics, drawing, writing in place, through views and by index, conditions, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Any:
        for number in range(2):
            x = self.drop(self.norm(self.linear(torch.cos(x))))
            x += 1
            view = x.view(-1)
            view[0] = 3.0
            if x.sum() > -1000:
                x = x + torch.rand_like(x)
            if number == 0:
                x = torch.sin(x)
        return {"x": x, "rest": (x.topk(2), x.T)}


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Varied, (5, 4)),
        (encoder, (2, 5, 8)),
        (lambda: nn.LSTM(4, 6, 2, dropout=0.3), (2, 5, 4)),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), (2, 3, 8, 8)),
        (lambda: nn.MultiheadAttention(8, 2), None),
        (nn.Identity, (3,)),
    ],
)
def test_right_values_are_valid(make: Callable[[], nn.Module], shape: tuple[int, ...] | None, training: bool) -> None:
    torch.manual_seed(0)
    inputs: Any = torch.randn(shape) if shape is not None else tuple(torch.randn(3, 4, 2, 8))
    report = validate_saved_activations(make().train(training), inputs)
    assert report, report
    assert report.unchecked == []


def test_model_inputs_and_random_state_are_as_before() -> None:
    model, x = Varied(), torch.randn(5, 4)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before, random = x.clone(), torch.get_rng_state()
    assert validate_saved_activations(model, x, random_seed=3)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_model_that_writes_to_its_input_is_valid() -> None:
    x = torch.ones(3)
    assert validate_saved_activations(Calls(lambda x: x.add_(1).mul(2)), x)
    assert x.tolist() == [1, 1, 1]


def test_a_function_in_place_of_inputs_is_validated() -> None:
    model, x = nn.Linear(3, 2), torch.ones(4, 3)
    report = validate_saved_activations(model, call=lambda: model(x).relu())
    assert report and report.n_replayed == 2


def history_of(forward: Callable[..., Any], *inputs: Tensor) -> ModelHistory:
    return log_forward_pass(Calls(forward), inputs)


def raw(history: ModelHistory, key: str) -> Any:
    """What was captured of an operation, to plant a mistake in it."""
    op = history[key]
    assert isinstance(op, Operation)
    return op.raw


def test_a_wrong_value_of_the_right_shape_is_found() -> None:
    history = history_of(lambda x: (x.exp() + 1).relu().sum(), torch.randn(3, 4))
    value = raw(history, "add_1").value
    assert value is not None
    value[1, 2] += 0.01
    report = validate_history(history)
    assert not report and report.first_failure is not None
    assert report.first_failure.name == "add_1_2"
    assert "run again from its saved parents it differs: 1 of 12 elements" in report.first_failure.why


def test_a_value_that_no_operation_shows_is_found_by_the_given_input() -> None:
    history = history_of(lambda x: x * 0, torch.ones(3))
    raw(history, "input_1").value.add_(1)
    assert validate_history(history)  # nothing that was computed depends on it
    report = validate_history(history, inputs={"[0]": torch.ones(3)})
    assert not report and report.first_failure is not None and "the input that was given" in report.first_failure.why


def test_swapped_parents_are_found() -> None:
    history = history_of(lambda x, y: torch.sub(x.cos(), y.sin()), torch.randn(3), torch.randn(3))
    sub = raw(history, "sub_1")
    sub.call.args = tuple(reversed(sub.call.args))
    sub.parents = tuple(reversed(sub.parents))
    report = validate_history(history)
    assert not report and report.first_failure is not None and report.first_failure.name == "sub_1_3"


def test_parents_that_are_not_those_of_the_arguments_are_found() -> None:
    history = history_of(lambda x, y: torch.sub(x.cos(), y.sin()), torch.randn(3), torch.randn(3))
    sub = raw(history, "sub_1")
    sub.parents = tuple(reversed(sub.parents))
    report = validate_history(history)
    assert not report and "the parents that it names (sin_1_2, cos_1_1)" in str(report.first_failure)


def test_a_stale_buffer_is_found() -> None:
    norm = nn.BatchNorm1d(4)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Any:
            self.norm(x)
            return x - self.norm.running_mean

    history = log_forward_pass(Twice(), torch.randn(6, 4) + 3)
    buffers = [op for op in history.operations if op.buffer_address == "norm.running_mean"]
    assert len(buffers) == 2 and validate_history(history)
    stale = buffers[0].raw.value
    buffers[1].raw.value = stale
    report = validate_history(history)
    assert not report and "it is not what batchnorm wrote" in str(report.first_failure)


def writes_in_place(x: Tensor) -> Tensor:
    y = x.cos()
    y.mul_(2)
    return y + 1


def test_a_missed_in_place_write_is_found() -> None:
    history = history_of(writes_in_place, torch.randn(4))
    add, mul = raw(history, "add_1"), raw(history, "mul_1")
    add.call.args = (mul.call.args[0], *add.call.args[1:])
    add.parents = mul.parents
    report = validate_history(history)
    assert not report and report.first_failure is not None and report.first_failure.name == "add_1_3"


def writes_through_a_view(x: Tensor) -> Tensor:
    y = x.cos()
    y.view(-1)[0] = 7.0
    return y + 1


def test_a_missed_write_through_a_view_is_found() -> None:
    history = history_of(writes_through_a_view, torch.randn(4))
    assert validate_history(history)
    add, view = raw(history, "add_1"), raw(history, "view_1")
    (overwritten, *others) = add.call.args
    assert overwritten.written_by
    add.call.args = (view.call.args[0], *others)
    assert not validate_history(history)


def test_a_wrong_value_after_a_write_through_a_view_is_found() -> None:
    history = history_of(writes_through_a_view, torch.randn(4))
    add = raw(history, "add_1")
    (overwritten, *_) = add.call.args
    overwritten.value[1] += 1
    add.value[1] += 1
    report = validate_history(history)
    assert not report and "after writes through other views, differs" in str(report)


def test_a_wrong_random_state_is_found() -> None:
    history = history_of(lambda x: nn.functional.dropout(x), torch.ones(40))
    drop = raw(history, "dropout_1")
    drop.call.rng = {"cpu": torch.Generator().manual_seed(5).get_state()}
    assert not validate_history(history)


def test_a_parent_that_makes_no_difference_is_found() -> None:
    history = history_of(lambda x, y: torch.add(x, y.exp()), torch.randn(3), torch.randn(3))
    add = raw(history, "add_1")
    add.call.func = lambda x, y: x + torch.zeros_like(y)
    add.value = raw(history, "input_1").value
    raw(history, "output_1").value = add.value
    report = validate_history(history)
    assert not report and "random values in place of exp_1_1 give the same result" in str(report.first_failure)


def test_an_output_that_the_model_does_not_return_is_found() -> None:
    history = history_of(lambda x: x + 1, torch.ones(2))
    assert validate_history(history, outputs={"": torch.full((2,), 2.0)})
    assert "it is not what the model returns" in str(validate_history(history, outputs={"": torch.ones(2)}))


def test_the_first_failure_is_where_it_began() -> None:
    history = history_of(lambda x: ((x + 1) * 2).exp().sum(), torch.randn(3))
    raw(history, "mul_1").value = raw(history, "mul_1").value.flip(0)
    report = validate_history(history)
    assert [failure.name for failure in report.failures] == ["mul_1_2", "exp_1_3"]


def test_what_cannot_be_checked_is_listed() -> None:
    history = history_of(lambda x: torch.vmap(lambda row: row.exp())(x) + 1, torch.randn(3, 2))
    report = validate_history(history)
    assert report
    assert any("functorch" in entry.why for entry in report.unchecked) or report.unchecked == []


def test_values_are_needed() -> None:
    with pytest.raises(FastrecError, match="that of input_1 was not saved; log the pass with layers_to_save='all'"):
        validate_history(get_model_metadata(nn.Linear(2, 2), torch.ones(1, 2)))


def test_a_report_reads_as_text_and_as_a_table() -> None:
    history = history_of(lambda x: x + torch.zeros_like(x).exp(), torch.ones(3))
    report = validate_history(history)
    assert str(report).startswith("Valid: 5 operations, 3 replayed (0 equal up to rounding)")
    assert "zeroslike_1_1 of input_1 (form only)" in str(report)
    assert list(report.to_pandas().rule) == ["form only"]


class Forces(nn.Module):
    """Computes a derivative in its forward pass, as models of molecules do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.energy = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x.detach().requires_grad_()
        energy = self.energy(torch.tanh(self.inner(x))).sum()
        (slope,) = torch.autograd.grad(energy, x, create_graph=True)
        return {"energy": energy, "forces": -slope * 2}


class Stepping(nn.Module):
    """Runs a backward pass in its forward pass, and reads what that left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        offset = torch.zeros(3, requires_grad=True)
        self.linear(x + offset).pow(2).sum().backward()
        assert offset.grad is not None
        return x - 0.1 * offset.grad


def test_a_derivative_in_the_pass_is_the_one_thing_that_could_not_be_checked() -> None:
    report = validate_saved_activations(Forces(), torch.randn(4, 3))
    assert report, report
    assert [entry.name for entry in report.unchecked] == ["grad_1_6"]
    assert "a derivative comes from autograd's graph" in report.unchecked[0].why
    assert report.n_replayed == 7


def test_what_is_computed_from_a_derivative_is_still_checked() -> None:
    history = log_forward_pass(Forces(), torch.randn(4, 3))
    history["mul_1"].activation[0, 0] += 1
    report = validate_history(history)
    assert not report and str(report.first_failure).startswith("mul_1_8")


@pytest.mark.parametrize("by_call", [False, True])
def test_a_gradient_that_a_backward_pass_left_is_not_the_value_of_its_tensor(by_call: bool) -> None:
    model, x = Stepping(), torch.randn(4, 3)
    given = {"call": lambda: model(x)} if by_call else {"input_args": x}
    history = log_forward_pass(model, **given)
    assert history["mul_1"].parent_layers == []
    report = validate_history(history)
    assert report and report.unchecked == [], report
    model.zero_grad()


class Decaying(nn.Module):
    """Writes to its own parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.mul_(0.5)
        return x * self.scale


def test_what_reads_a_parameter_that_the_pass_writes_could_not_be_checked() -> None:
    report = validate_saved_activations(Decaying(), torch.randn(3, 4))
    assert report, report
    assert [entry.name for entry in report.unchecked] == ["mul_1_1", "outputs"]
    assert "writes to the parameter 'scale'" in report.unchecked[0].why


def test_values_that_are_set_through_data_are_those_of_the_other_tensor() -> None:
    def forward(x: Tensor) -> Tensor:
        y = x * 1
        y.data = x.exp()
        return y + 1

    report = validate_saved_activations(Calls(forward), torch.randn(3, 4))
    assert report and report.unchecked == [], report
    history = log_forward_pass(Calls(forward), torch.randn(3, 4))
    assert history["add_1"].parent_layers == ["exp_1_2"]


def test_quantized_values_are_named_as_not_checked() -> None:
    report = validate_saved_activations(
        Calls(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8).dequantize() + 1), torch.rand(2, 2)
    )
    assert report, report
    assert [entry.name for entry in report.unchecked] == ["quantizepertensor_1_1", "dequantize_1_2"]


def test_a_parent_may_stand_in_a_slice() -> None:
    def forward(x: Tensor) -> Tensor:
        first, last = (x > 9).sum(), (x < 9).sum()
        y = x.clone()
        y[first:last] = x[first:last] * 2
        return y

    report = validate_saved_activations(Calls(forward), torch.randn(6))
    assert report and report.unchecked == [], report
