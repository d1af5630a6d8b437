"""Which values a history holds: selections, and new inputs in place of the old ones."""

import pytest
import torch
from torch import Tensor, nn

from fastrec._errors import FastrecError, GraphDifferenceError
from fastrec.graph import log_forward_pass
from tests.graph.models import network

X = torch.rand(2, 3, 8, 8)


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


def test_a_selection_needs_a_model_that_runs_alike() -> None:
    calls = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)  # not the module's own, so nobody puts it back between the runs
            return x.relu() if len(calls) == 1 else x.tanh()

    with pytest.raises(
        GraphDifferenceError, match=r"number 1: relu_1 at '/relu' .* tanh_1 at '/tanh' .* layers_to_save='all'"
    ):
        log_forward_pass(Counting(), torch.ones(2), layers_to_save=["relu"])


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


def test_an_operation_carries_the_labels_of_the_fast_path() -> None:
    history = log_forward_pass(network(), X)
    assert [(op.label, op.site) for op in history.operations[1:4]] == [
        ("conv2d_1", "0.0/conv2d"),
        ("relu_1", "0.1/relu"),
        ("maxpool2d_1", "0.2/maxpool2d"),
    ]


def test_new_activations_can_be_of_other_layers_and_trainable() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    history = log_forward_pass(net, torch.ones(2, 4))
    new = torch.randn(2, 4)
    history.save_new_activations(new, layers_to_save=["tanh"])
    assert history.layer_labels == ["tanh_1_2"]
    assert torch.equal(history["tanh_1"].activation, net[1](net[0](new)))
    history.save_new_activations(new)
    assert history.layer_labels == ["tanh_1_2"]
    history.save_new_activations(new, layers_to_save="all", train_mode=True)
    history["tanh_1"].activation.sum().backward()
    assert net[0].weight.grad is not None and len(history) == 5
    history.save_new_activations(new, layers_to_save=None)
    assert history["tanh_1"].activation is None
    with pytest.raises(FastrecError, match="layers_to_save has 'gelu', which is neither a key"):
        history.save_new_activations(new, layers_to_save="gelu")
    with torch.no_grad(), pytest.raises(FastrecError, match="train_mode=True under torch.no_grad"):
        history.save_new_activations(new, train_mode=True)
