"""The tensors that a spec makes of a value: transforms, attached clones, gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastrec import CaptureSpec
from fastrec._errors import OptionError
from fastrec.sinks._copying import parts_of, watch_gradient
from tests.contracts.sink import assert_same
from tests.helpers.modes import GETTERS, SeenNames


def test_transforms_clones_and_gradients_are_unseen_by_other_modes() -> None:
    spec = CaptureSpec(keep_grad=True, transform=lambda t: t.mean(0) * 2, dtype=torch.float64)
    leaf = torch.randn(3, requires_grad=True)
    value = leaf * 2
    gradients: dict[int, Tensor] = {}
    with SeenNames() as seen:
        parts_of(value, spec)
        watch_gradient(value, spec, gradients, 0)
    assert set(seen.names) <= GETTERS
    value.sum().backward()
    assert_same(gradients[0], torch.ones(3, dtype=torch.float64))


def test_transforms_see_the_value_detached() -> None:
    seen = []

    def transform(t: Tensor) -> Tensor:
        seen.append((t.requires_grad, torch.is_grad_enabled()))
        return t.sum(1)

    value = torch.randn(2, 3, requires_grad=True)
    parts = parts_of(value, CaptureSpec(transform=transform))
    assert seen == [(False, False)] and not parts["transformed_activation"].requires_grad
    assert_same(parts["transformed_activation"], value.sum(1))


def test_transforms_of_attached_values_are_attached() -> None:
    leaf = torch.randn(2, 3, requires_grad=True)
    value = leaf * 1
    parts = parts_of(value, CaptureSpec(transform=lambda t: t[0], keep_grad=True))
    assert sorted(parts) == ["activation", "transformed_activation"]
    for part in parts.values():
        assert part.untyped_storage().data_ptr() != value.untyped_storage().data_ptr()
    (parts["activation"].sum() + parts["transformed_activation"].sum()).backward()
    assert leaf.grad is not None and leaf.grad.tolist() == [[2.0] * 3, [1.0] * 3]


def test_attached_clones_are_cast_with_their_gradients() -> None:
    leaf = torch.randn(3, requires_grad=True)
    (kept,) = parts_of(leaf * 2, CaptureSpec(keep_grad=True, dtype=torch.float64)).values()
    assert kept.dtype == torch.float64
    kept.sum().backward()
    assert leaf.grad is not None and leaf.grad.tolist() == [2.0] * 3


def test_a_transform_has_to_return_a_tensor() -> None:
    with pytest.raises(OptionError, match=r"transform .*returns_number returned 3.*has to return a tensor"):

        def returns_number(t: Tensor) -> Any:
            return 3

        parts_of(torch.zeros(2), CaptureSpec(transform=returns_number))


@pytest.mark.parametrize("inference", [False, True])
def test_a_transform_can_not_change_the_value_of_the_model_unnoticed(inference: bool) -> None:
    with torch.inference_mode(inference):
        value = torch.full((2,), -1.0)
        spec = CaptureSpec(transform=torch.Tensor.relu_)
        if inference:
            assert parts_of(value, spec)["transformed_activation"].tolist() == [0.0, 0.0]
            assert value.tolist() == [-1.0, -1.0]
        else:
            with pytest.raises(OptionError, match="wrote into its input"):
                parts_of(value, spec)
