"""Under which keys operations are found, and how records find theirs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec._errors import RecordKeyError
from fastrec.graph import load_history, log_forward_pass
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


class Shared(nn.Module):
    """One module under two addresses, with a module in it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x))
        return out


def test_a_module_is_found_under_each_of_its_addresses(tmp_path: Path) -> None:
    model, x = Shared(), torch.randn(2, 4)
    history = log_forward_pass(model, x)
    history.save(tmp_path / "pass.h5")
    for read in (history, load_history(tmp_path / "pass.h5")):
        for first, second in (("a", "b"), ("a:2", "b:2"), ("a.0", "b.0"), ("a.1:1", "b.1:1")):
            assert read[second].layer_label == read[first].layer_label
        assert torch.equal(read["b:2"].activation, model(x))
    assert len(log_forward_pass(model, x, layers_to_save=["b"]).layer_labels) == 2
