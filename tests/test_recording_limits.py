import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from fastrec._errors import GradientError, UnsupportedTensorError
from fastrec._torch.tensors import check_copyable
from fastrec.events.capture import CaptureSpec, check_gradients

KEEP_GRAD = CaptureSpec(keep_grad=True)
SAVE_GRADIENT = CaptureSpec(save_gradient=True)


class Wrapper(Tensor):
    @staticmethod
    def __new__(cls) -> "Wrapper":
        return Tensor._make_wrapper_subclass(cls, (3,), dtype=torch.float32)  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        raise NotImplementedError


class Tagged(Tensor):
    """A subclass that only adds to what a tensor is."""


def quiet(make: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if make == "csr":
            return torch.eye(3).to_sparse_csr()
        if make == "nested":
            return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        if make == "jagged":
            return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
        if make == "quantized":
            return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)
        if make == "fake":
            with FakeTensorMode():
                return torch.ones(3)
        if make == "mkldnn":
            return torch.ones(3).to_mkldnn()
        return {"coo": torch.eye(3).to_sparse, "meta": lambda: torch.empty(3, device="meta"), "own": Wrapper}[make]()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        ("coo", "layout torch.sparse_coo can't be recorded as it is; .*dense tensor"),
        ("csr", "layout torch.sparse_csr"),
        ("mkldnn", "layout torch._mkldnn"),
        ("meta", "a meta tensor, which has no values, .*run the model on a device that computes"),
        ("nested", "a nested tensor .*padded"),
        ("jagged", "NestedTensor"),
        ("quantized", r"a quantized tensor \(torch.quint8\) .*dequantized"),
        ("fake", "FakeTensor"),
        ("own", r"Wrapper can't be recorded as it is; .*full_tensor\(\)"),
    ],
)
def test_tensors_of_which_no_right_copy_can_be_made_are_named(make: str, told: str) -> None:
    with pytest.raises(UnsupportedTensorError, match=told):
        check_copyable(quiet(make))


@pytest.mark.skipif(not hasattr(torch, "int4"), reason="this torch has no narrow integers")
def test_integers_narrower_than_a_byte_are_refused() -> None:
    with pytest.raises(UnsupportedTensorError, match="torch.int4"):
        check_copyable(torch.empty(3, dtype=torch.int4))


@pytest.mark.parametrize(
    "value",
    [torch.zeros(3), nn.Parameter(torch.zeros(3)), nn.Buffer(torch.zeros(3)), torch.zeros(3).as_subclass(Tagged)],
    ids=lambda value: type(value).__name__,
)
def test_tensors_with_ordinary_memory_are_fine(value: Tensor) -> None:
    check_copyable(value)


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
