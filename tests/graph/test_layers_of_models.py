"""The conventions of the paper on models."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from fastrec.graph import ModelHistory, get_model_metadata


def labels(history: ModelHistory) -> list[str]:
    """Labels of the operations, with the pass where there are several."""
    return [history.graph.label(index) for index in history.graph.order]


def passes(history: ModelHistory) -> dict[str, int]:
    """How many passes each layer of several has."""
    return {layer.short: len(layer.ops) for layer in history.graph.layers if len(layer.ops) > 1}


class SharedWithSurroundings(nn.Module):
    """The paper's first figure of recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(torch.cos(x)) + 1
        x = torch.sin(x)
        return self.linear(torch.cos(x)) + 1


class RepeatedSequence(nn.Module):
    """The paper's second figure of recurrence."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.relu(torch.cos(x)) * 2
        x = torch.tan(x)
        return torch.relu(torch.cos(x)) * 2


def test_shared_parameters_with_what_surrounds_them() -> None:
    history = get_model_metadata(SharedWithSurroundings(), torch.ones(2, 5))
    assert labels(history) == [
        "input_1",
        *("cos_1_1:1", "linear_1_2:1", "add_1_3:1", "sin_1_4", "cos_1_1:2", "linear_1_2:2", "add_1_3:2"),
        "output_1",
    ]
    cos = history["cos_1_1"]
    assert cos.parent_layers == ["input_1", "sin_1_4"]  # type: ignore[union-attr]
    assert history.model_is_recurrent and history.model_max_recurrent_loops == 2


def test_repeated_sequences_without_parameters() -> None:
    history = get_model_metadata(RepeatedSequence(), torch.ones(2, 5))
    assert labels(history) == [
        "input_1",
        *("cos_1_1:1", "relu_1_2:1", "mul_1_3:1", "cos_1_1:2", "relu_1_2:2", "mul_1_3:2", "tan_1_4"),
        *("cos_2_5", "relu_2_6", "mul_2_7"),
        "output_1",
    ]


@pytest.mark.parametrize(("between", "layers"), [([], 3), ([torch.tan, torch.atan], 11)])
def test_contiguous_or_not(between: list[object], layers: int) -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for number in range(3):
                x = torch.sigmoid(torch.exp(torch.neg(x)))
                if number < len(between):
                    x = between[number](x)  # type: ignore[operator]
            return x

    assert len(get_model_metadata(Loop(), torch.ones(2)).graph.layers) == layers + 2


class HandWrittenRNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.again, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            state = torch.tanh(self.read(x[:, t]) + self.again(state))
        return self.out(state)


def test_an_rnn_cell_unrolled_by_hand() -> None:
    history = get_model_metadata(HandWrittenRNN(), torch.ones(2, 5, 3))
    assert passes(history) == {"linear_1": 5, "linear_2": 5, "add_1": 5, "tanh_1": 5}
    assert history["tanh_1:3"].parent_layers == ["add_1_5:3"]  # type: ignore[union-attr]


class RNNWithoutParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 3)
        for t in range(x.shape[1]):
            state = torch.tanh(x[:, t] + state)
        return state


def test_a_recurrence_without_parameters() -> None:
    history = get_model_metadata(RNNWithoutParameters(), torch.ones(2, 4, 3))
    assert passes(history) == {"add_1": 4, "tanh_1": 4}


class Tied(nn.Module):
    """One block run several times, or blocks of their own that have the same parameters."""

    def __init__(self, depth: int, *, one_block: bool) -> None:
        super().__init__()
        blocks = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0) for _ in range(depth)]
        for block in blocks[1:]:
            for name, module in block.named_modules():
                for key in module._parameters:
                    module._parameters[key] = blocks[0].get_submodule(name)._parameters[key]
        self.blocks = nn.ModuleList([blocks[0]] * depth if one_block else blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("one_block", [True, False])
def test_a_weight_tied_transformer(one_block: bool) -> None:
    history = get_model_metadata(Tied(3, one_block=one_block), torch.ones(2, 4, 8))
    ops = [layer for layer in history.graph.layers if layer.layer_type not in ("input", "output")]
    assert {len(layer.ops) for layer in ops} == {3}


class RecurrentVision(nn.Module):
    """Convolutions with lateral and feedback connections over time, a norm of its own at each time step."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.first, self.lateral = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(times))
        self.relu, self.head = nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = self.first(x)
        for norm in self.norms:
            state = self.relu(norm(self.lateral(state)))
        return self.head(state.mean((2, 3)))


def test_a_recurrent_vision_model() -> None:
    history = get_model_metadata(RecurrentVision(4), torch.ones(1, 3, 8, 8))
    # Each time step has a norm of its own; the last activation is behind one, and before no shared convolution.
    assert passes(history) == {"conv2d_2": 4, "relu_1": 3}
    assert history.module_num_passes["relu"] == 4


class EarlyExit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        while x.abs().max() > 1:
            x = torch.sigmoid(x) * 0.5 * x
        return x


def test_an_early_exit_loop_has_as_many_passes_as_its_input_makes() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EarlyExit()
    few = get_model_metadata(model, torch.full((1, 4), 3.0))
    many = get_model_metadata(model, torch.full((1, 4), 300.0))
    assert 1 <= few.model_max_recurrent_loops < many.model_max_recurrent_loops
    assert passes(many)["sigmoid_1"] == many.model_max_recurrent_loops - 1 or passes(many)["sigmoid_1"] > 1


def test_a_model_without_repetition_is_feedforward() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        *(nn.ReLU(), nn.Dropout(), nn.Dropout(), nn.Flatten()),
    )
    history = get_model_metadata(model, torch.ones(1, 3, 8, 8))
    assert not history.model_is_recurrent
    assert Counter(len(layer.ops) for layer in history.graph.layers).keys() == {1}


def test_a_module_that_is_called_again_is_recurrent() -> None:
    cell = nn.Linear(3, 3)
    history = get_model_metadata(nn.Sequential(cell, nn.Tanh(), cell, nn.Tanh()), torch.ones(1, 3))
    assert passes(history) == {"linear_1": 2, "tanh_1": 2}
