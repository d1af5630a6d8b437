"""Under which keys operations are found, and how records find theirs."""

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec._errors import RecordKeyError
from fastrec.graph import log_forward_pass
from tests.graph.models import network

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
        (1.5, "1.5 is not a key; give a label"),
        (True, "True is not a key"),
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


def test_numbers_count_the_saved_layers_only() -> None:
    history = log_forward_pass(network(), X, layers_to_save=["relu", "linear"])
    assert [history[0].layer_label, history[-1].layer_label] == ["relu_1_2", "linear_1_5"]
    assert history["sigmoid_1"].lookup_keys == ["3", "3:1", "sigmoid_1", "sigmoid_1:1", "sigmoid_1_6", "sigmoid_1_6:1"]


def test_a_selection_that_names_nothing_is_an_error() -> None:
    with pytest.raises(RecordKeyError, match="layers_to_save has 'lstm', which is neither a key nor a part of a label"):
        log_forward_pass(network(), X, layers_to_save=["lstm"])


def test_a_module_with_several_outputs_has_to_be_told_apart() -> None:
    history = log_forward_pass(nn.Sequential(nn.LSTM(3, 4)), torch.ones(5, 1, 3))
    with pytest.raises(RecordKeyError, match="'0' names several operations: lstm_1_3, lstm_2_4, lstm_3_5"):
        history["0"]


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
