"""Specs: which fields contradict each other, and where gradients can flow."""

import pytest
import torch

from fastrec import CaptureSpec
from fastrec._errors import GradientError, OptionError
from fastrec.events.capture import check_gradients, kept_dtype

KEEP_GRAD = CaptureSpec(keep_grad=True)
SAVE_GRADIENT = CaptureSpec(save_gradient=True)

WRONG = [
    (dict(keep_grad=1), r"keep_grad=1\): give True or False"),
    (dict(dtype="float17"), "give a torch.dtype such as torch.bfloat16"),
    (dict(dtype=torch.int32, keep_grad=True), "gradients flow through floating and complex dtypes only"),
    (dict(transform="mean"), "give a function tensor -> tensor"),
    (dict(save_raw=False), "keeps nothing without a transform"),
    (dict(device="gpu9"), r"CaptureSpec\(device='gpu9'\)"),
    (dict(save_activation=False, save_gradient=True), "keeps no tensor, so save_gradient has no effect"),
    (dict(save_activation=False, keep_grad=True), "keeps no tensor, so keep_grad has no effect"),
    (dict(save_activation=False, transform=torch.relu), "keeps no tensor, so transform has no effect"),
]


@pytest.mark.parametrize(("fields", "text"), WRONG, ids=[text[:30] for _, text in WRONG])
def test_fields_that_contradict_each_other_are_refused(fields: dict, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        CaptureSpec(**fields)


def test_only_what_differs_from_the_default_is_printed() -> None:
    assert repr(CaptureSpec(dtype=torch.float16, save_gradient=True)) == (
        "CaptureSpec(dtype=torch.float16, save_gradient=True)"
    )


def test_changes_leave_the_other_fields_as_they_are() -> None:
    spec = CaptureSpec(dtype=torch.float16).with_changes({"device": "cpu"})
    assert spec == CaptureSpec(dtype=torch.float16, device="cpu")


def test_only_floating_and_complex_values_are_cast() -> None:
    spec = CaptureSpec(dtype=torch.float16)
    for dtype in (torch.int64, torch.bool, torch.uint8):
        assert kept_dtype(spec, dtype) == dtype
    assert kept_dtype(spec, torch.float32) == kept_dtype(spec, torch.complex64) == torch.float16


@pytest.mark.parametrize("spec", [KEEP_GRAD, SAVE_GRADIENT], ids=["keep_grad", "save_gradient"])
def test_gradients_are_refused_where_no_graph_is_built(spec: CaptureSpec) -> None:
    name = "keep_grad" if spec.keep_grad else "save_gradient"
    value = torch.randn(3, requires_grad=True) * 2
    with torch.no_grad(), pytest.raises(GradientError, match=rf"{name}=True\) met .*torch.no_grad.*drop {name}"):
        check_gradients(value, spec)
    with torch.inference_mode(), pytest.raises(GradientError, match=rf"{name}=True\) met .*torch.inference_mode"):
        check_gradients(value, spec)
    with pytest.raises(GradientError, match=r"met a value of torch.int64, through which no gradient flows"):
        check_gradients(torch.arange(3), spec)


def test_a_value_made_in_inference_mode_can_not_be_attached() -> None:
    with torch.inference_mode():
        value = torch.randn(3)
    with pytest.raises(GradientError, match="made under torch.inference_mode, which can't be part of a graph"):
        check_gradients(value, KEEP_GRAD)


def test_a_frozen_value_is_kept_but_gets_no_gradient() -> None:
    frozen = torch.randn(3)
    check_gradients(frozen, KEEP_GRAD)
    with pytest.raises(GradientError, match="does not require a gradient, so none will ever reach it"):
        check_gradients(frozen, SAVE_GRADIENT)
    check_gradients(torch.randn(3, requires_grad=True), SAVE_GRADIENT)
    check_gradients(torch.arange(3), CaptureSpec())
