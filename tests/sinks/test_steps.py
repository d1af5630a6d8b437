"""Step columns are copies of numbers, from whatever holds them."""

from typing import Any

import numpy as np
import pytest
import torch

from fastrec import FastrecError, Recorder
from fastrec.sinks._steps import step_columns


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (2, np.array(2)),
        (True, np.array(True)),
        ([1.5, 2.0], np.array([1.5, 2.0])),
        (np.float32(0.5), np.array(0.5, np.float32)),
        (np.array([True, False]), np.array([True, False])),
        (torch.tensor([1, 2]), np.array([1, 2])),
        (torch.tensor(0.5, requires_grad=True), np.array(0.5, np.float32)),
        (torch.tensor([0.5], dtype=torch.bfloat16), np.array([0.5], np.float32)),
    ],
)
def test_numbers_become_arrays(given: object, expected: np.ndarray) -> None:
    found = step_columns({"value": given})["value"]
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("given", [np.zeros(3), torch.zeros(3)])
def test_columns_are_copies(given: np.ndarray | torch.Tensor) -> None:
    found = step_columns({"reward": given})["reward"]
    given += 1
    assert found.tolist() == [0, 0, 0]


@pytest.mark.parametrize("given", ["three", None, [object()], [[1.0], [1.0, 2.0]]])
def test_what_is_no_number_is_refused(given: object) -> None:
    with pytest.raises(FastrecError, match=r"(?s)step\(reward=.*give a number, a bool, or an array of them"):
        step_columns({"reward": given})


THREE = np.zeros(3, bool)


@pytest.mark.parametrize(
    "columns",
    [
        {"terminated": False, "truncated": False, "reward": 1.0, "action": np.arange(6.0)},
        {"terminated": False, "reward": np.ones(2), "image": np.zeros((2, 4, 4))},
        {"terminated": THREE, "truncated": THREE, "reward": np.ones(3), "action": np.zeros((3, 6)), "lr": 0.1},
        {"reward": np.ones(3), "goal": np.ones((3, 2, 2))},
        {"done": np.zeros(1, bool), "action": np.zeros((1, 6))},
        {"goal": np.arange(4), "action": np.arange(6)},
    ],
)
def test_what_comes_after_the_axis_of_environments_is_the_columns_own_shape(columns: dict[str, Any]) -> None:
    found = step_columns(columns)
    assert {name: value.shape for name, value in found.items()} == {k: np.shape(v) for k, v in columns.items()}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"terminated": THREE, "goal": np.ones(4)}, r"goal=...\) has shape \(4,\), and terminated .* 3 environments"),
        (
            {"reward": np.ones(3), "goal": np.ones((4, 3))},
            r"goal=...\) .* and reward says that there are 3 .*\(3, ...\)",
        ),
        ({"truncated": THREE, "reward": np.ones(2)}, r"reward=...\) has shape \(2,\), and truncated says"),
        (
            {"terminated": THREE, "truncated": False},
            r"truncated=False\) has shape \(\) beside terminated of shape \(3,\)",
        ),
        ({"reward": np.ones((3, 2))}, r"has shape \(3, 2\).*give each of them one value, or one per environment"),
    ],
)
def test_columns_that_disagree_on_the_environments_are_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(FastrecError, match=f"(?s){message}"):
        step_columns(columns)


def test_a_mark_that_is_refused_leaves_no_gap() -> None:
    model = torch.nn.Linear(2, 2)
    with Recorder(model, keep_op="linear") as rec:
        for reward in ([1.0, 2.0], 3.0, [3.0, 4.0]):
            model(torch.zeros(1, 2))
            if isinstance(reward, float):
                with pytest.raises(FastrecError, match="give it one shape within a phase"):
                    rec.step(reward=reward)
            else:
                rec.step(reward=reward)
    assert [record.ctx.step for record in rec.recording] == [0, 1, 1]
