"""Where two histories differ."""

import torch
from torch import nn

from fastrec.graph import log_forward_pass
from tests.graph.models import Branching


def test_the_same_graph_on_other_inputs_differs_in_values_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    first, second = (log_forward_pass(model, torch.full((2, 4), value)) for value in (1.0, 2.0))
    difference = first.diff(second)
    assert not difference and difference.values[0] == "input_1"
    assert not first.diff(first) and first.diff(first).values == ()
    assert str(difference).startswith("the same operations; ")


def test_another_branch_is_told_by_its_operations() -> None:
    model = Branching().eval()
    with torch.no_grad():
        model.linear.weight.copy_(torch.eye(4))
        model.linear.bias.zero_()
    first, second = (log_forward_pass(model, torch.full((2, 4), value)) for value in (1.0, -1.0))
    difference = first.diff(second)
    assert difference
    assert [label.partition("_")[0] for label in difference.only_in_first] == ["cos", "cat"]
    assert difference.only_in_second == ()
    changed = {entry.first.partition("_")[0]: entry.what for entry in difference.changed}
    assert changed["sin"] == ("parents", "shape") and "linear" not in changed
    assert "only in the first: cos" in str(difference)
    assert second.diff(first).only_in_second == difference.only_in_first
