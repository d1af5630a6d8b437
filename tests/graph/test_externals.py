"""Tensors that no function returned that was seen: constants, or operations of unknown origin."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastrec.graph import log_forward_pass, validate_history, validate_saved_activations
from tests.graph.models import Calls

CLOSURE, FREE_PARAMETER, NESTED = torch.ones(3), nn.Parameter(torch.ones(3)), {"a": [torch.ones(3)]}

MADE: list[Callable[[], Tensor]] = [
    lambda: torch.from_numpy(np.ones(3, np.float32)),
    lambda: torch.Tensor([1.0, 2.0, 3.0]),
    lambda: torch.FloatTensor([1.0, 2.0, 3.0]),
    lambda: torch.frombuffer(bytearray(12), dtype=torch.float32),
    lambda: nn.Parameter(torch.ones(3)),
]


@pytest.fixture(params=[True, False], ids=["gradients", "no gradients"], autouse=True)
def _with_and_without_gradients(request: pytest.FixtureRequest) -> Any:
    with torch.set_grad_enabled(request.param):
        yield


@pytest.mark.parametrize("make", MADE)
def test_a_tensor_made_in_the_pass_is_an_operation(make: Callable[[], Tensor]) -> None:
    model, x = Calls(lambda x: x.sin() * make() + 1), torch.randn(3)
    history = log_forward_pass(model, x)
    assert history.internally_initialized_layers == ["external_1_2"]
    assert history["mul_1"].parent_layers == ["sin_1_1", "external_1_2"]
    assert torch.equal(history["external_1"].activation, make())
    report = validate_saved_activations(model, x)
    assert report and [entry.name for entry in report.unchecked] == ["external_1_2"]
    assert "the same for slightly other inputs" in report.unchecked[0].why


@pytest.mark.parametrize("constant", [lambda: CLOSURE, lambda: FREE_PARAMETER, lambda: NESTED["a"][0]])
def test_a_tensor_that_was_there_before_the_pass_is_a_constant(constant: Callable[[], Tensor]) -> None:
    model, x = Calls(lambda x: (x * constant()) + constant()), torch.randn(3)
    history = log_forward_pass(model, x)
    assert history.layer_labels == ["input_1", "mul_1_1", "add_1_2", "output_1"]
    assert history["mul_1"].computed_with_params == isinstance(constant(), nn.Parameter)
    assert history["mul_1"].creation_args[1] is not None
    report = validate_saved_activations(model, x)
    assert report and report.unchecked == [], report


def test_what_only_the_pass_and_autograd_hold_is_told_from_what_the_model_holds() -> None:
    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attribute, self.listed = torch.ones(3), [torch.ones(3)]

        def forward(self, x: Tensor) -> Tensor:
            local = torch.Tensor([1.0, 2.0, 3.0])
            return (x * self.attribute) * self.listed[0] * local * local

    history = log_forward_pass(Holds(), torch.ones(3, requires_grad=True))
    (label,) = history.internally_initialized_layers
    assert history[label].activation.tolist() == [1, 2, 3]


class Threaded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: torch.sigmoid(x)).result() + self.linear(x)


@pytest.mark.parametrize(
    "model", [Threaded(), Calls(lambda x: x + torch.from_numpy(np.sin(x.detach().numpy()))), Calls(lambda x: x * 1)]
)
@pytest.mark.filterwarnings("ignore:a recorded pass gave work to another thread:fastrec.FastrecWarning")
def test_a_graph_in_which_a_value_came_from_nowhere_is_not_valid(model: nn.Module) -> None:
    x = torch.randn(3)
    labels = log_forward_pass(model, x).layer_labels
    comes_from_nowhere = any("external" in label for label in labels)
    assert comes_from_nowhere == (len(labels) > 3)
    report = validate_saved_activations(model, x)
    assert bool(report) != comes_from_nowhere and bool(validate_history(log_forward_pass(model, x))) == bool(report)
    if comes_from_nowhere:
        reason = (
            "no operation that was seen returned it: the graph is not complete|the ops that ran there were not seen"
        )
        assert re.search(reason, str(report.first_failure))
