"""What a history offers beside its attributes: keys, selections, new inputs, records, profiles."""

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec._errors import GraphDifferenceError, OptionError, RecordKeyError
from fastrec.graph import LayerEntry, log_forward_pass


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), nn.Flatten(), nn.Linear(36, 5), nn.Sigmoid()
    )


X = torch.rand(2, 3, 8, 8)


@pytest.mark.parametrize(
    "key", ["maxpool2d_1_3", "maxpool2d_1", "maxpool2d_1_3:1", "maxpool2d_1:1", "0.2", "0", "0:1", "0.2:1", 3, -5]
)
def test_all_keys_of_an_operation_find_it(key: str | int) -> None:
    history = log_forward_pass(network(), X)
    assert history[key].layer_label == "maxpool2d_1_3"
    assert key in history[key].lookup_keys


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("relu_7", "nothing is called 'relu_7'; did you mean 'relu_1'"),
        (99, "there is no number 99 among 8 operations"),
        (-9, "there is no number -9"),
        (1.5, "1.5 is no key; give a label"),
        (True, "True is no key"),
        ("relu", "nothing is called 'relu'"),
    ],
)
def test_a_key_that_finds_nothing_is_an_error(key: object, message: str) -> None:
    with pytest.raises(RecordKeyError, match=message):
        log_forward_pass(network(), X)[key]


def test_numbers_are_in_execution_order() -> None:
    history = log_forward_pass(network(), X)
    labels = [history[number].layer_label for number in range(len(history))]
    assert labels == history.layer_labels
    places = {label: place for place, label in enumerate(labels)}
    assert all(places[parent] < places[op.layer_label] for op in history for parent in op.parent_layers)


@pytest.mark.parametrize(
    ("layers_to_save", "saved"),
    [
        (None, []),
        ("none", []),
        ([], []),
        ("conv", ["conv2d_1_1"]),
        (["linear", "sigmoid_1_6"], ["linear_1_5", "sigmoid_1_6"]),
        (["0"], ["maxpool2d_1_3"]),
        ([-1, 1], ["conv2d_1_1", "output_1"]),
        (["relu_1:1", "flatten"], ["relu_1_2", "flatten_1_4"]),
    ],
)
def test_only_what_is_selected_is_saved(layers_to_save: object, saved: list[str]) -> None:
    model = network()
    history = log_forward_pass(model, X, layers_to_save=layers_to_save)
    assert [op.layer_label for op in history.operations if op.has_saved_activations] == saved
    full = log_forward_pass(model, X)
    assert all(torch.equal(history[label].activation, full[label].activation) for label in saved)
    assert history.layer_labels == (saved or full.layer_labels)


def test_numbers_count_the_saved_layers_only() -> None:
    history = log_forward_pass(network(), X, layers_to_save=["relu", "linear"])
    assert [history[0].layer_label, history[-1].layer_label] == ["relu_1_2", "linear_1_5"]
    assert history["sigmoid_1"].lookup_keys == ["3", "3:1", "sigmoid_1", "sigmoid_1:1", "sigmoid_1_6", "sigmoid_1_6:1"]


def test_a_selection_that_names_nothing_is_an_error() -> None:
    with pytest.raises(RecordKeyError, match="layers_to_save has 'lstm', which is neither a key nor a part of a label"):
        log_forward_pass(network(), X, layers_to_save=["lstm"])


def test_a_selection_needs_a_model_that_runs_alike() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.relu() if self.calls == 1 else x.tanh()

    with pytest.raises(
        GraphDifferenceError, match=r"number 1: relu_1 at '/relu' .* tanh_1 at '/tanh' .* layers_to_save='all'"
    ):
        log_forward_pass(Counting(), torch.ones(2), layers_to_save=["relu"])


def test_a_layer_of_several_passes_is_one_entry() -> None:
    cell = nn.Linear(3, 3)
    history = log_forward_pass(nn.Sequential(cell, nn.Tanh(), cell), torch.ones(1, 3))
    layer = history["linear_1_1"]
    assert isinstance(layer, LayerEntry)
    assert [each.layer_label_w_pass for each in layer] == ["linear_1_1:1", "linear_1_1:2"]
    assert history["linear_1:2"] == layer[2]
    assert (layer.parent_layers, layer.child_layers) == (["input_1", "tanh_1_2"], ["tanh_1_2", "output_1"])
    with pytest.raises(RecordKeyError, match="linear_1_1 has 2 passes, each with a value"):
        layer.activation  # noqa: B018
    with pytest.raises(RecordKeyError, match="passes 1 to 2, not 3"):
        layer[3]


def test_a_module_with_several_outputs_has_to_be_told_apart() -> None:
    history = log_forward_pass(nn.Sequential(nn.LSTM(3, 4)), torch.ones(5, 1, 3))
    with pytest.raises(RecordKeyError, match="'0' names several operations: lstm_1_3, lstm_2_4, lstm_3_5"):
        history["0"]


def test_new_inputs_replace_the_values() -> None:
    model = network()
    history = log_forward_pass(model, X, layers_to_save=["linear"])
    entry, new = history["linear_1"], torch.rand(7, 3, 8, 8)
    history.save_new_activations(new)
    assert torch.equal(entry.activation, model[:3](new))
    assert entry.tensor_shape == (7, 5)
    assert history.layer_labels == ["linear_1_5"]
    assert history.num_tensors_saved == 1


class Choosing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.sum() > 0 else x.tanh()


def test_new_inputs_that_take_another_way_are_refused() -> None:
    history = log_forward_pass(Choosing(), torch.ones(2))
    with pytest.raises(GraphDifferenceError, match=r"difference is number 3: relu_1 .*before, tanh_1 at '/tanh'"):
        history.save_new_activations(-torch.ones(2))
    assert history["relu_1"].activation.tolist() == [1, 1]


@pytest.mark.parametrize("keep", [{"keep_op": True}, {"keep_module": True}])
def test_every_record_finds_its_operation(keep: dict[str, bool]) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)
            self.attention = nn.MultiheadAttention(8, 2)
            self.rnn = nn.LSTM(8, 4)

        def forward(self, x: Tensor) -> dict[str, object]:
            y, weights = self.attention(x, x, x)
            z, state = self.rnn(self.norm(y.transpose(1, 2)).transpose(1, 2))
            return {"z": z.chunk(2, -1), "state": state, "weights": weights}

    model, x = Attention(), torch.rand(5, 3, 8)
    model = model if keep.get("keep_op") else model.eval()
    x = torch.rand(8, 3, 8)
    recording = fastrec.record(model, x, include_source_events=True, **keep)
    history = log_forward_pass(model, x)
    assert len(recording) > 4
    counted = {"norm/add", "norm.num_batches_tracked:buffer"}  # which leads to no output
    for record in recording:
        if record.ctx.site in counted:
            with pytest.raises(RecordKeyError, match="is an orphan"):
                history.op_for(record)
            continue
        found = history.op_for(record).activation
        torch.testing.assert_close(found, record.activation)


def test_a_record_of_something_else_is_an_error() -> None:
    record = fastrec.record(nn.Tanh(), torch.ones(2), keep_op=True)[0]
    with pytest.raises(RecordKeyError, match="no operation of this history is the op 'tanh_1' at '/tanh'"):
        log_forward_pass(nn.ReLU(), torch.ones(2)).op_for(record)


def test_an_operation_carries_the_labels_of_the_fast_path() -> None:
    history = log_forward_pass(network(), X)
    assert [(op.label, op.site) for op in history.operations[1:4]] == [
        ("conv2d_1", "0.0/conv2d"),
        ("relu_1", "0.1/relu"),
        ("maxpool2d_1", "0.2/maxpool2d"),
    ]


def test_profiles_are_sorted_and_add_up() -> None:
    history = log_forward_pass(network(), X)
    by_op, by_module = history.profile(), history.profile("module", sort="memory")
    assert [row.seconds for row in by_op] == sorted((row.seconds for row in by_op), reverse=True)
    assert sum(row.share for row in by_op) == pytest.approx(1)
    assert sum(row.seconds for row in by_op) == pytest.approx(history.elapsed_time_function_calls)
    rows = {row.name: row for row in by_module}
    assert rows["0"].memory == sum(rows[f"0.{i}"].memory for i in range(3)) == 4 * (2 * 4 * 6 * 6 * 2 + 2 * 4 * 3 * 3)
    assert rows["0"].parameters == 4 * (4 * 3 * 3 * 3 + 4)
    assert [row.memory for row in by_module] == sorted((row.memory for row in by_module), reverse=True)
    assert str(by_op[:2]).splitlines()[0].split() == ["name", "kind", "calls", "time", "share", "memory", "params"]


@pytest.mark.parametrize(("option", "message"), [({"by": "layer"}, "by='layer'"), ({"sort": "size"}, "sort='size'")])
def test_a_profile_of_something_else_is_refused(option: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        log_forward_pass(nn.ReLU(), torch.ones(2)).profile(**option)


def test_modules_parameters_and_buffers() -> None:
    norm = nn.BatchNorm1d(3)
    history = log_forward_pass(nn.Sequential(nn.Sequential(norm), nn.Linear(3, 2)), torch.rand(4, 3))
    assert list(history.modules) == ["0", "0.0", "1"]
    outer = history.modules["0"]
    assert (outer.module_type, outer.num_passes, outer.parameters) == ("Sequential", 1, ("0.0.weight", "0.0.bias"))
    assert outer.passes[0].children == ("0.0:1",)
    assert outer.operations == ("batchnorm_1_1",)
    assert (outer.passes[0].inputs, outer.passes[0].outputs) == (("input_1",), ("batchnorm_1_1",))
    weight = history.parameters["1.weight"]
    assert (weight.shape, weight.num_params, weight.fsize, weight.used_by) == ((2, 3), 6, 24, ("linear_1_2",))
    mean = history.buffers["0.0.running_mean"]
    assert (mean.reads, mean.used_by, mean.written_by) == (("buffer_1",), ("batchnorm_1_1",), ("batchnorm_1_1",))


def test_what_a_function_makes_of_values_is_saved() -> None:
    history = log_forward_pass(network(), X, activation_postfunc=lambda t: t.mean(0))
    op = history["conv2d_1"]
    assert torch.equal(op.transformed_activation, op.activation.mean(0))
    assert (op.tensor_shape, op.transformed_activation_shape) == ((2, 4, 6, 6), (4, 6, 6))


def test_the_raw_value_can_be_left_out() -> None:
    history = log_forward_pass(network(), X, activation_postfunc=torch.mean, save_raw_activation=False)
    op = history["conv2d_1"]
    assert op.activation is None
    assert op.transformed_activation.dim() == 0
    assert (op.tensor_shape, op.tensor_fsize) == ((2, 4, 6, 6), 4 * 2 * 4 * 36)
    assert history.num_tensors_saved == 8


def test_in_train_mode_saved_values_can_be_part_of_a_loss() -> None:
    model = network()
    history = log_forward_pass(model, X, layers_to_save=["conv2d"], train_mode=True)
    history["conv2d_1"].activation.square().mean().backward()
    assert model[0][0].weight.grad is not None
    assert model[2].weight.grad is None
    assert not log_forward_pass(model, X)["conv2d_1"].activation.requires_grad


def test_gradients_of_a_later_backward_pass_are_saved() -> None:
    model = network()
    outputs: list[Tensor] = []

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            outputs.append(self.inner(x))
            return outputs[0]

    history = log_forward_pass(Keeps(), X, save_gradients=True)
    assert not history["linear_1"].has_gradient
    outputs[0].sum().backward()
    sigmoid = history["sigmoid_1"].activation
    assert torch.equal(history["sigmoid_1"].gradient, torch.ones(2, 5))
    torch.testing.assert_close(history["linear_1"].gradient, sigmoid * (1 - sigmoid))
    assert not history["input_1"].has_gradient
