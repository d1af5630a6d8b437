"""Where in the source an operation was computed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.graph import FuncCallLocation, log_forward_pass


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


def test_the_call_stack_leads_from_the_model_to_the_function() -> None:
    history = log_forward_pass(Net(), torch.rand(1, 3, 8, 8))
    stack = history["relu_2"].func_call_stack
    in_this_file = [location for location in stack if location.file == __file__]
    first = Net.forward.__code__.co_firstlineno
    assert [(location.function, location.line) for location in in_this_file] == [
        ("forward", first + 2),
        ("pooled", Net.pooled.__code__.co_firstlineno + 1),
    ]
    assert stack[0] == in_this_file[0]
    stack = history["conv2d_1"].func_call_stack
    assert (stack[0].function, stack[0].line) == ("forward", first + 1)
    assert [location.function for location in stack] == ["forward", "forward", "forward", "_conv_forward"]


def test_a_location_shows_its_code_with_an_arrow() -> None:
    history = log_forward_pass(Net(), torch.rand(1, 3, 8, 8))
    location = history["mean_1"].func_call_stack[-1]
    assert (
        location.code.splitlines()
        == [
            "",
            "      def pooled(self, x: Tensor) -> Tensor:",
            "--->      return F.relu(x.mean((2, 3)))",
            "",
            "",
        ]
        or location.code.splitlines()[2] == "--->      return F.relu(x.mean((2, 3)))"
    )
    assert str(location).splitlines()[:5] == [
        "FuncCallLocation:",
        f"  file: {__file__}",
        f"  line: {location.line}",
        "  function: pooled",
        "  code:",
    ]


def test_a_location_without_source_says_so() -> None:
    assert FuncCallLocation(file="<string>", line=1, function="f").code == "source not available"
