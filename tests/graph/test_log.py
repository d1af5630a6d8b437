"""Logging a forward pass: what is recorded, and that nothing else changes."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec._errors import FastrecError, FastrecWarning, OptionError
from fastrec.graph import ModelHistory, get_model_metadata, log_forward_pass, validate_saved_activations


class Branching(nn.Module):
    """Two inputs, a buffer, a parameter used directly, a tensor made inside, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.full((4,), 2.0))
        self.register_buffer("offset", torch.ones(4))

    def forward(self, x: Tensor, *, y: Tensor) -> dict[str, object]:
        h = self.linear(x) * self.scale + self.offset
        noise = torch.zeros(4)
        return {"sum": h + y, "rest": [h - noise]}


@pytest.fixture
def model() -> Branching:
    torch.manual_seed(0)
    return Branching()


def logged(model: nn.Module) -> ModelHistory:
    return log_forward_pass(model, torch.ones(2, 4), {"y": torch.ones(2, 4)})


def test_all_operations_are_logged_in_order(model: Branching) -> None:
    assert logged(model).layer_labels == [
        "input_1",
        "input_2",
        "linear_1_1",
        "mul_1_2",
        "buffer_1",
        "add_1_3",
        "zeros_1_4",
        "add_2_5",
        "sub_1_6",
        "output_1",
        "output_2",
    ]


def test_parents_follow_the_values(model: Branching) -> None:
    history = logged(model)
    assert {op.layer_label: op.parent_layers for op in history} == {
        "input_1": [],
        "input_2": [],
        "linear_1_1": ["input_1"],
        "mul_1_2": ["linear_1_1"],
        "buffer_1": [],
        "add_1_3": ["mul_1_2", "buffer_1"],
        "zeros_1_4": [],
        "add_2_5": ["add_1_3", "input_2"],
        "sub_1_6": ["add_1_3", "zeros_1_4"],
        "output_1": ["add_2_5"],
        "output_2": ["sub_1_6"],
    }


def test_values_are_those_of_the_pass(model: Branching) -> None:
    x, y = torch.rand(2, 4), torch.rand(2, 4)
    history = log_forward_pass(model, x, {"y": y})
    expected = model(x, y=y)
    assert torch.equal(history["input_1"].activation, x)
    assert torch.equal(history["output_1"].activation, expected["sum"])
    assert torch.equal(history["output_2"].activation, expected["rest"][0])
    assert torch.equal(history["linear_1"].activation, model.linear(x))


def test_saved_values_are_not_touched_by_later_writes() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            y.mul_(3)
            y[0] = 7
            return y

    x = torch.ones(2, 2)
    history = log_forward_pass(Writes(), x)
    x.zero_()
    values = {op.layer_label: op.activation.tolist() for op in history}
    assert values == {
        "input_1": [[1, 1], [1, 1]],
        "add_1_1": [[2, 2], [2, 2]],
        "mul_1_2": [[6, 6], [6, 6]],
        "setitem_1_3": [[7, 7], [6, 6]],
        "output_1": [[7, 7], [6, 6]],
    }
    assert [op.function_is_inplace for op in history] == [False, False, True, True, False]


def test_a_write_through_another_view_is_a_parent() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            first, second = y[0], y[1]
            first.mul_(5)
            return (y * 2).sum() + second.sum()

    history = log_forward_pass(Writes(), torch.ones(2, 2))
    assert history["mul_2"].parent_layers == ["add_1_1", "mul_1_4"]
    assert history["mul_2"].creation_args[0].tolist() == [[10, 10], [2, 2]]
    assert history["add_1"].activation.tolist() == [[2, 2], [2, 2]]
    assert history["sum_2"].parent_layers == ["getitem_2_3"]


def test_buffers_that_are_written_are_read_anew() -> None:
    norm = nn.BatchNorm1d(3, momentum=1.0)
    history = log_forward_pass(nn.Sequential(norm, norm).train(), torch.randn(8, 3))
    buffers = [(op.buffer_address, op.parent_layers) for op in history if op.is_buffer_layer]
    assert buffers == [
        ("0.running_mean", []),
        ("0.running_var", []),
        ("0.running_mean", ["batchnorm_1_1:1"]),
        ("0.running_var", ["batchnorm_1_1:1"]),
    ]


@pytest.mark.parametrize("layers_to_save", ["all", None, ["linear"]])
def test_buffers_are_as_after_a_plain_pass(layers_to_save: object) -> None:
    plain, logged = (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2))
    logged.load_state_dict(plain.state_dict())
    x = torch.rand(6, 4)
    plain(x)
    log_forward_pass(logged, x, layers_to_save=layers_to_save)
    assert logged[1].num_batches_tracked == 1
    assert torch.equal(plain[1].running_mean, logged[1].running_mean)


@pytest.mark.parametrize("layers_to_save", ["all", None, ["dropout"]])
def test_random_states_are_as_after_a_plain_pass(layers_to_save: object) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    x = torch.rand(6, 4)
    torch.manual_seed(5)
    expected, after = model(x), torch.get_rng_state()
    torch.manual_seed(5)
    history = log_forward_pass(model, x, layers_to_save=layers_to_save)
    assert torch.equal(torch.get_rng_state(), after)
    if layers_to_save:
        assert torch.equal(history["dropout_1"].activation, expected)


def test_a_seed_is_used_reported_and_leaves_the_random_state_alone() -> None:
    model, x = nn.Dropout(0.5), torch.ones(100)
    before = torch.get_rng_state()
    first, second = (log_forward_pass(model, x, random_seed=11) for _ in range(2))
    assert first.random_seed_used == 11
    assert torch.equal(first["dropout_1"].activation, second["dropout_1"].activation)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_stays_on_the_model_or_its_tensors(model: Branching) -> None:
    def state() -> list[object]:
        return [
            *((sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()),
            *((id(p), p.requires_grad, p.grad, p._backward_hooks) for p in model.parameters()),
        ]

    call, x = nn.Module.__call__, torch.ones(2, 4)
    before = state()
    log_forward_pass(model, x, {"y": x})
    assert state() == before
    assert nn.Module.__call__ is call
    assert vars(x) == {}


def test_metadata_keeps_no_tensor_alive() -> None:
    seen: list[weakref.ref[Tensor]] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = (x + 1).sum()
            seen.append(weakref.ref(y))
            return y

    gc.disable()  # at once, not only when cycles are collected
    try:
        metadata = get_model_metadata(Watched(), torch.ones(3))
        assert seen[0]() is None
    finally:
        gc.enable()
    assert metadata.num_tensors_saved == 0
    assert [op.activation for op in metadata] == [None] * 4


def test_an_error_of_the_model_passes_through() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        log_forward_pass(nn.Linear(4, 4), torch.ones(2, 3))
    assert nn.Linear(4, 4)(torch.ones(2, 4)).shape == (2, 4)


def test_a_call_is_logged_as_one_pass() -> None:
    actor, critic = nn.Linear(4, 2), nn.Linear(4, 1)
    obs = torch.rand(3, 4)
    history = log_forward_pass({"actor": actor, "critic": critic}, call=lambda: (actor(obs).argmax(1), critic(obs)))
    assert history.layer_labels == ["input_1", "linear_1_1", "argmax_1_2", "linear_2_3", "output_1", "output_2"]
    assert history["linear_2"].containing_module_origin == "critic:1"


def test_there_has_to_be_one_way_to_run_the_model() -> None:
    with pytest.raises(OptionError, match="give either input_args or input_kwargs, or call="):
        log_forward_pass(nn.ReLU())
    with pytest.raises(OptionError, match="several roots"):
        log_forward_pass({"a": nn.ReLU(), "b": nn.ReLU()}, torch.ones(1))


def test_a_compiled_model_is_logged_as_the_one_that_it_was_made_from() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    compiled: Any = torch.compile(model, backend="eager")
    x = torch.ones(2, 4)
    history = log_forward_pass(compiled, x)
    assert history.layer_labels == log_forward_pass(model, x).layer_labels
    assert history.model_name == "Sequential"
    with pytest.raises(FastrecError, match=r"compiled with torch.compile.*model._orig_mod"):
        log_forward_pass({"net": compiled}, call=lambda: compiled(x))


def test_values_go_with_the_history_and_wait_for_no_collection(model: Branching) -> None:
    gc.collect()
    gc.disable()
    try:
        history = log_forward_pass(model, torch.ones(2, 4), {"y": torch.ones(4)})
        kept = [weakref.ref(op.activation) for op in history.operations]
        del history
        assert [ref() for ref in kept] == [None] * len(kept)
    finally:
        gc.enable()


@pytest.mark.parametrize("select", [3.5, True, {"relu": 1}])
def test_a_selection_is_a_key_or_a_list_of_keys(select: Any) -> None:
    with pytest.raises(OptionError, match="give 'all', None, a key, or a list of keys"):
        log_forward_pass(nn.ReLU(), torch.ones(2), layers_to_save=select)


def test_an_error_has_the_history_of_what_ran_before_it() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(3, 3))

        def forward(self, x: Tensor) -> Any:
            return self.inner(x.sin())

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        log_forward_pass(Fails(), torch.ones(2, 4))
    history = caught.value.history  # type: ignore[attr-defined]
    assert history.layer_labels == ["input_1", "sin_1_1", "linear_1_2"]
    assert torch.equal(history["sin_1"].activation, torch.ones(2, 4).sin())
    assert history["linear_1"].containing_module_origin == "inner.0:1" and "sin_1_1" in str(history)


@pytest.mark.parametrize("postfunc", [lambda value: value.no_such_method(), lambda value: 1 / 0])
def test_an_error_of_a_postfunc_names_the_layer(postfunc: Any) -> None:
    with pytest.raises(
        OptionError, match=r"activation_postfunc failed for the value of input_1 at ':in\[0\]'"
    ) as caught:
        log_forward_pass(nn.Tanh(), torch.ones(2, 4), activation_postfunc=postfunc)
    assert isinstance(caught.value.__cause__, AttributeError | ZeroDivisionError)


def test_a_model_that_returns_no_tensors_is_told() -> None:
    class Acts(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.distributions.Categorical(logits=x.tanh())

    with pytest.warns(FastrecWarning, match="the model returned a Categorical, in which fastrec finds no tensors"):
        history = log_forward_pass(Acts(), torch.ones(2, 4))
    assert history.output_layers == [] and "tanh_1_1" in history.layer_labels
    report = validate_saved_activations(Acts(), torch.ones(2, 4))
    assert [entry.name for entry in report.unchecked if not entry.parent] == ["outputs"]
    assert "no tensors were found in the Categorical returned" in str(report)


def test_a_tuple_is_the_only_argument_of_a_forward_that_takes_one() -> None:
    class TakesPair(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor], *, scale: float = 1.0) -> Tensor:
            return pair[0] + pair[1] * scale

    x, y = torch.ones(2), torch.zeros(2)
    for given in ((x, y), ((x, y),), [x, y]):
        assert log_forward_pass(TakesPair(), given).input_layers == ["input_1", "input_2"]
        assert validate_saved_activations(TakesPair(), given)
    with pytest.raises(TypeError):
        log_forward_pass(nn.Bilinear(2, 2, 2), (x,))
