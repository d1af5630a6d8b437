"""Step columns are copies of numbers, from whatever holds them."""

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


@pytest.mark.parametrize("given", ["three", None, np.zeros((2, 2)), torch.zeros(2, 2), [object()]])
def test_what_is_no_number_per_environment_is_refused(given: object) -> None:
    with pytest.raises(FastrecError, match=r"(?s)step\(reward=.*give a number, a bool, or an array with one per env"):
        step_columns({"reward": given})


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
