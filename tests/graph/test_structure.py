"""Where operations stand: between the ends, in the modules, and behind what hides them."""

import pytest
import torch
from torch import Tensor, nn

from fastrec.graph import log_forward_pass


def test_orphans_are_left_out() -> None:
    class Orphans(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            (torch.ones(2) * 2).exp()
            x.tanh()
            return x + torch.zeros(2)

    history = log_forward_pass(Orphans(), torch.ones(2))
    assert history.layer_labels == ["input_1", "tanh_1_1", "zeros_1_2", "add_1_3", "output_1"]


def test_what_a_dead_end_reads_is_no_orphan() -> None:
    class DeadEnd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x * torch.ones(2).exp()
            return x

    history = log_forward_pass(DeadEnd(), torch.ones(2))
    assert history.layer_labels == ["input_1", "ones_1_1", "exp_1_2", "mul_1_3", "output_1"]
    assert history["mul_1"].terminated_inside_model


def test_distances_take_the_shortest_and_the_longest_way() -> None:
    class Skip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin().cos().exp() + x

    history = log_forward_pass(Skip(), torch.ones(2))
    far = {o.layer_label: (o.min_distance_from_input, o.max_distance_from_input) for o in history}
    near = {o.layer_label: (o.min_distance_from_output, o.max_distance_from_output) for o in history}
    assert far == {
        "input_1": (0, 0),
        "sin_1_1": (1, 1),
        "cos_1_2": (2, 2),
        "exp_1_3": (3, 3),
        "add_1_4": (1, 4),
        "output_1": (2, 5),
    }
    assert near["input_1"] == (2, 5)


def test_a_tensor_made_inside_of_a_module_is_in_that_module() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(2).exp()

    history = log_forward_pass(nn.Sequential(nn.Sequential(Noise())), torch.ones(2))
    assert history["ones_1"].containing_module_origin_nested == ["0:1", "0.0:1"]
    assert history["exp_1"].containing_module_origin == "0.0:1"
    assert history["ones_1"].initialized_inside_model
    assert not history["exp_1"].has_input_ancestor


def test_an_exception_that_the_model_catches_leaves_no_module_open() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError(x.neg())

    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raises = nn.Sequential(Raises())
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.raises(x)
            except ValueError:
                return self.linear(x) + 1

    history = log_forward_pass(Catches(), torch.ones(2))
    assert history["linear_1"].containing_module_origin_nested == ["linear:1"]
    assert history["add_1"].containing_module_origin is None
    assert history["neg_1"].containing_module_origin_nested == ["raises:1", "raises.0:1"]


def test_values_are_followed_through_vmap() -> None:
    class Mapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(lambda row: row.sin() * 2)(x).sum()

    history = log_forward_pass(Mapped(), torch.ones(3, 2))
    assert {op.layer_label: op.parent_layers for op in history.operations} == {
        "input_1": [],
        "sin_1_1": ["input_1"],
        "mul_1_2": ["sin_1_1"],
        "sum_1_3": ["mul_1_2"],
        "output_1": ["sum_1_3"],
    }
    assert "functorch transform" in history["mul_1"].not_saved_because
    assert history["sum_1"].activation is not None


def test_a_compiled_child_is_one_operation() -> None:
    child = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))

    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = child

        def forward(self, x: Tensor) -> Tensor:
            return self.child(x * 2) + 1

    with pytest.warns(UserWarning, match="is a ScriptModule"):
        history = log_forward_pass(Scripted(), torch.ones(1, 2))
    assert [op.layer_type for op in history][2] == "recursivescriptmodule"
    assert history[2].parent_layers == ["mul_1_1"]
    assert history["child"] == history[2]


def test_attention_is_opened_to_its_functions() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    x = torch.rand(1, 3, 4)
    with torch.no_grad():
        history = log_forward_pass(attention, (x, x, x))
        expected = attention(x, x, x)
    types = [op.layer_type for op in history]
    assert {"linear", "softmax", "bmm"} <= set(types) or "baddbmm" in types
    assert "multiheadattentionforward" not in types
    torch.testing.assert_close(history["output_1"].activation, expected[0])
