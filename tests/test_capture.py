"""How a kept value is copied, and which wishes do not fit together."""

import pytest
import torch

from fastrec import CaptureSpec
from fastrec._errors import OptionError

WRONG = [
    (dict(keep_grad=1), r"keep_grad=1\): give True or False"),
    (dict(dtype="float16"), "give a torch.dtype such as torch.bfloat16"),
    (dict(dtype=torch.int32, keep_grad=True), "gradients flow through floating and complex dtypes only"),
    (dict(transform="mean"), "give a function tensor -> tensor"),
    (dict(save_raw=False), "keeps nothing without a transform"),
    (dict(device="gpu9"), r"CaptureSpec\(device='gpu9'\)"),
    (dict(save_activation=False, save_gradient=True), "keeps no tensor, so save_gradient has no effect"),
    (dict(save_activation=False, keep_grad=True), "keeps no tensor, so keep_grad has no effect"),
    (dict(save_activation=False, transform=torch.relu), "keeps no tensor, so transform has no effect"),
]


@pytest.mark.parametrize(("fields", "text"), WRONG, ids=[text[:30] for _, text in WRONG])
def test_wishes_that_do_not_fit_are_refused(fields: dict, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        CaptureSpec(**fields)


def test_only_what_differs_from_the_default_is_printed() -> None:
    assert repr(CaptureSpec(dtype=torch.float16, save_gradient=True)) == (
        "CaptureSpec(dtype=torch.float16, save_gradient=True)"
    )


def test_changes_leave_the_other_fields_as_they_are() -> None:
    spec = CaptureSpec(dtype=torch.float16).with_changes({"device": "cpu"})
    assert spec == CaptureSpec(dtype=torch.float16, device="cpu")
