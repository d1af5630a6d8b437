"""Questions about a graph."""

import pytest
import torch
from torch import Tensor, nn

from fastrec import FastrecError
from fastrec._errors import RecordKeyError
from fastrec.graph import LayerEntry, ModelHistory, Operations, log_forward_pass


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.left, self.right = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.left(x).relu() + torch.tanh(self.right(x))
        return self.head(x)


@pytest.fixture
def history() -> ModelHistory:
    return log_forward_pass(Branching(), torch.ones(1, 1, 8, 8))


def test_all_pooling_layers_whose_parent_is_a_relu(history: ModelHistory) -> None:
    assert history.operations.of_type("*pool*").labels == ["maxpool2d_1_3", "avgpool2d_1_9"]
    assert history.operations.of_type("*pool*").with_parent("relu").labels == ["maxpool2d_1_3"]


def test_how_many_convolutions_lie_between_two_layers(history: ModelHistory) -> None:
    assert len(history.between("relu_1", "linear_1").of_type("conv*")) == 2
    assert len(history.between("maxpool2d_1", "relu_2").of_type("conv*")) == 1
    assert len(history.between("linear_1", "relu_1")) == 0


def test_everything_between_two_sites(history: ModelHistory) -> None:
    found = history.between("stem.2/maxpool2d", "head.0/avgpool2d")
    assert found.labels == ["conv2d_2_4", "relu_2_5", "conv2d_3_6", "tanh_1_7", "add_1_8"]
    assert history.between("stem", "head.0") == found


def test_what_ran_in_a_module(history: ModelHistory) -> None:
    assert history.operations.inside("stem").labels == ["conv2d_1_1", "relu_1_2", "maxpool2d_1_3"]
    assert history.operations.inside("head.*").of_type("linear").labels == ["linear_1_11"]


def test_the_slowest_ten(history: ModelHistory) -> None:
    seconds = [each.func_time_elapsed for each in history.operations.slowest(10)]
    assert len(seconds) == 10 and seconds == sorted(seconds, reverse=True)
    assert seconds[0] == max(each.func_time_elapsed for each in history.operations)
    assert history.operations.largest(1).labels == ["conv2d_1_1"]


def test_children_parameters_and_any_function(history: ModelHistory) -> None:
    assert history.operations.with_child("add").labels == ["relu_2_5", "tanh_1_7"]
    assert len(history.operations.with_parameters()) == 4
    assert history.operations.where(lambda op: op.tensor_shape == (1, 3)).labels == ["linear_1_11", "output_1"]


def test_operations_are_a_sequence(history: ModelHistory) -> None:
    found = history.operations
    assert isinstance(found[1:3], Operations) and found[1:3].labels == ["conv2d_1_1", "relu_1_2"]
    assert found[0].layer_label == "input_1" and found == list(found)
    assert repr(found[:2]) == "<2 operations: input_1, conv2d_1_1>"
    assert repr(found[:0]) == "<no operations>"


def test_bad_questions_are_refused(history: ModelHistory) -> None:
    with pytest.raises(FastrecError, match="give one or more strings, such as 'conv\\*'"):
        history.operations.of_type()
    with pytest.raises(FastrecError, match="give a whole number from 1 up"):
        history.operations.slowest(0)
    with pytest.raises(FastrecError, match="nothing is called 'relu_9'"):
        history.between("relu_9", "output_1")


def test_layers_of_several_passes_are_between_as_a_whole() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = torch.sin(self.linear(x))
            return x.exp()

    history = log_forward_pass(Loop(), torch.ones(1, 3))
    assert history.between("linear_1", "exp_1").labels == ["sin_1_2:1", "sin_1_2:2"]
    assert history.between("linear_1:2", "exp_1").labels == ["sin_1_2:2"]


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
