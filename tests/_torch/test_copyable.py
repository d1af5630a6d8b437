"""Tensors of which no right copy can be made."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from fastrec._errors import UnsupportedTensorError
from fastrec._torch.tensors import check_copyable


class Wrapper(Tensor):
    @staticmethod
    def __new__(cls) -> "Wrapper":
        return Tensor._make_wrapper_subclass(cls, (3,), dtype=torch.float32)  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        raise NotImplementedError


class Tagged(Tensor):
    """A subclass that only adds to what a tensor is."""


def make_tensor(kind: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "csr":
            return torch.eye(3).to_sparse_csr()
        if kind == "nested":
            return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        if kind == "jagged":
            return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
        if kind == "quantized":
            return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)
        if kind == "fake":
            with FakeTensorMode():
                return torch.ones(3)
        if kind == "mkldnn":
            return torch.ones(3).to_mkldnn()
        return {"coo": torch.eye(3).to_sparse, "meta": lambda: torch.empty(3, device="meta"), "own": Wrapper}[kind]()


@pytest.mark.parametrize(
    ("kind", "message"),
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
def test_tensors_of_which_no_right_copy_can_be_made_are_named(kind: str, message: str) -> None:
    with pytest.raises(UnsupportedTensorError, match=message):
        check_copyable(make_tensor(kind))


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
