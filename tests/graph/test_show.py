"""What histories, layers and call stacks look like in print, and where calls come from."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fastrec.graph import log_forward_pass


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(self.pooled(x))

    def pooled(self, x: Tensor) -> Tensor:
        return F.relu(x.mean((2, 3)))


def test_a_history_tells_model_pass_modules_and_layers() -> None:
    torch.manual_seed(0)
    history = log_forward_pass(Net(), torch.rand(1, 3, 8, 8), random_seed=7)
    lines = str(history).splitlines()
    seconds = lines.pop(5)
    assert seconds.startswith("    Time elapsed: ")
    assert seconds.endswith("s")
    assert lines == [
        "Log of Net forward pass:",
        "    Model structure: purely feedforward, without branching; 4 total modules.",
        "    7 tensors (1.9 KB) computed in forward pass; 7 tensors (1.9 KB) saved.",
        "    2 parameter operations (122 params total; 488 B).",
        "    Random seed: 7",
        "    Module Hierarchy:",
        "        features:",
        "            features.0, features.1",
        "        head",
        "    Layers:",
        "        0: input_1",
        "        1: conv2d_1_1",
        "        2: relu_1_2",
        "        3: mean_1_3",
        "        4: relu_2_4",
        "        5: linear_1_5",
        "        6: output_1",
    ]


def test_a_layer_tells_value_params_family_function_and_modules() -> None:
    torch.manual_seed(0)
    history = log_forward_pass(Net(), torch.rand(1, 3, 8, 8))
    lines = [line.strip() for line in str(history["conv2d_1"]).splitlines()]
    assert lines[:2] == [
        "Layer conv2d_1_1, operation 1/5:",
        "Output tensor: shape=(1, 4, 6, 6), dtype=torch.float32, size=576 B",
    ]
    preview = lines[2:7]
    assert preview[0].startswith("tensor([[")
    assert preview[-1].endswith("...")
    assert all(row.count(".") - row.count("...") * 3 == 5 for row in preview)
    assert lines[7:9] == [
        "Params: computed from params with shape (4, 3, 3, 3), (4,); 112 params total (448 B)",
        "Parent Layers: input_1",
    ]
    assert lines[9:12] == [
        "Child Layers: relu_1_2",
        "Function: conv2d (grad_fn=ConvolutionBackward0)",
        "Computed inside module: features.0",
    ]
    assert lines[12].startswith("Time elapsed: ")
    assert lines[13:] == [
        "Output of modules: features.0",
        "Output of bottom-level module: features.0",
        "Lookup keys: -6, 1, conv2d_1, conv2d_1:1, conv2d_1_1, conv2d_1_1:1, features.0, features.0:1",
    ]


def test_passes_of_a_layer_say_which_they_are() -> None:
    cell = nn.Linear(2, 2)
    history = log_forward_pass(nn.Sequential(cell, cell), torch.ones(1, 2), layers_to_save=None)
    assert str(history["linear_1:2"]).splitlines()[0] == "Layer linear_1_1:2 (pass 2/2), operation 2/2:"
    assert "Layers (no values saved):" in str(history)
    assert "        2: linear_1_1:2 (2/2 passes)" in str(history).splitlines()
