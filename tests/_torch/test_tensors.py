"""Tensors are told apart by a guard, and those that can't be copied are refused by name."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from fastrec._errors import UnsupportedTensorError
from fastrec._torch.tensors import (
    check_copyable,
    clone_like,
    has_memory,
    have_sole_owner,
    never_matches,
    outside_torch_modes,
    own_their_storage,
    tensor_guard,
)


class Sub(Tensor):
    pass


def like(**options: object) -> Tensor:
    return torch.zeros(3, 4, **options)  # type: ignore[call-overload]


def test_another_value_of_the_same_kind_is_alike() -> None:
    test = tensor_guard(like())
    assert test(like())
    assert test(torch.ones(6, 4)[3:])
    assert test(like() + 1)


OTHERS: dict[str, Callable[[], Tensor]] = {
    "shape": lambda: torch.zeros(4, 3),
    "number of dimensions": lambda: torch.zeros(3, 4, 1),
    "dtype": lambda: like(dtype=torch.float64),
    "device": lambda: like(device="meta"),
    "strides": lambda: torch.zeros(4, 3).T,
    "expanded": lambda: torch.zeros(4).expand(3, 4),
    "lazily negated": lambda: torch._neg_view(like()),
    "a zero tensor": lambda: torch._efficientzerotensor((3, 4)),  # type: ignore[no-untyped-call]
    "a subclass": lambda: like().as_subclass(Sub),
    "a parameter": lambda: torch.nn.Parameter(like()),
    "gradient": lambda: like(requires_grad=True),
    "sparse": lambda: like().to_sparse(),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_a_value_of_another_kind_is_not_alike(make: Callable[[], Tensor]) -> None:
    test = tensor_guard(like())
    value = make()
    assert not test(value)
    assert tensor_guard(value)(value)


def test_a_lazily_conjugated_value_is_not_alike() -> None:
    value = torch.zeros(3, dtype=torch.complex64)
    assert not tensor_guard(value)(value.conj())


def test_what_is_on_in_the_thread_counts() -> None:
    test = tensor_guard(like())
    with torch.inference_mode():
        assert not test(like())
    with torch.autocast("cpu"):
        assert not test(like())


def test_a_batched_value_is_not_alike() -> None:
    test = tensor_guard(like())
    seen = []

    def look(value: Tensor) -> Tensor:
        seen.append(test(value))
        return value

    torch.vmap(look)(torch.zeros(2, 3, 4))
    assert seen == [False]


def test_asking_is_no_op_to_a_mode() -> None:
    seen: list[object] = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    value = like()
    test = tensor_guard(value)
    with Mode():
        assert test(value)
    assert not seen


def test_nothing_is_alike_to_nothing() -> None:
    assert not never_matches(like())


class Wrapper(Tensor):
    @staticmethod
    def __new__(cls) -> "Wrapper":
        return Tensor._make_wrapper_subclass(cls, (3,), dtype=torch.float32)  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        raise NotImplementedError


class Tagged(Tensor):
    """A subclass that only adds to what a tensor is."""


def uncopyable(make: str) -> Tensor:
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
    ("make", "message"),
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
def test_tensors_of_which_no_right_copy_can_be_made_are_named(make: str, message: str) -> None:
    with pytest.raises(UnsupportedTensorError, match=message):
        check_copyable(uncopyable(make))


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


def test_a_value_that_only_a_list_has_is_told_from_one_that_others_have() -> None:
    values = [torch.ones(3)]
    assert have_sole_owner(values)
    reference = values[0]
    assert not have_sole_owner(values)
    del reference
    view = values[0][1:]
    assert not have_sole_owner(values)
    del view
    assert have_sole_owner(values)
    values = [torch.ones(3, requires_grad=True) * 2]
    saved = values[0].square()  # autograd has it for the backward pass
    assert not have_sole_owner(values)
    del saved
    assert have_sole_owner(values)


def test_memory_that_another_library_has_seen_is_noticed() -> None:
    assert own_their_storage([torch.ones(3)])
    assert not own_their_storage([torch.from_numpy(torch.ones(3).numpy() + 1)])
    value = torch.ones(3)
    value.numpy()
    assert not own_their_storage([value])


def test_a_clone_requires_a_gradient_as_its_value_does() -> None:
    value = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        assert clone_like(value).requires_grad and not clone_like(value.detach()).requires_grad


def test_tensors_made_outside_of_modes_are_normal_and_unseen() -> None:
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            raise AssertionError

    with torch.inference_mode(), Mode(), outside_torch_modes():
        assert not torch.ones(3).is_inference()


def test_a_tensor_whose_storage_was_freed_has_no_memory() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    views = [base, base[1:], base.t(), base[:, ::2], base[1, 1:], base[:0]]
    assert all(has_memory(view) for view in [*views, torch.tensor(1.0).expand(5)])
    base.untyped_storage().resize_(0)
    assert [has_memory(view) for view in views] == [False, False, False, False, False, True]
