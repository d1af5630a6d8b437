"""Which values are saved, and how."""

import pytest
import torch
from torch import Tensor, nn

from fastrec._errors import GradientError
from fastrec.graph import log_forward_pass
from tests.graph.models import network

X = torch.rand(2, 3, 8, 8)


def test_what_cannot_be_copied_is_in_the_graph_and_says_why() -> None:
    class Sparse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to_sparse().to_dense()

    history = log_forward_pass(Sparse(), torch.eye(2))
    assert history["tosparse_1"].activation is None
    assert "torch.sparse_coo" in history["tosparse_1"].not_saved_because
    assert "not saved: " in str(history["tosparse_1"])
    assert history["todense_1"].parent_layers == ["tosparse_1_1"]


@pytest.mark.parametrize("option", ["train_mode", "save_gradients"])
def test_what_needs_gradients_is_refused_without_them(option: str) -> None:
    with torch.no_grad(), pytest.raises(GradientError, match=f"{option}=True under torch.no_grad"):
        log_forward_pass(nn.Linear(2, 2), torch.ones(2), **{option: True})


def test_saved_values_can_be_left_attached() -> None:
    history = log_forward_pass(nn.Linear(2, 2), torch.ones(2), detach_saved_tensors=False)
    assert history["linear_1"].activation.requires_grad


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
