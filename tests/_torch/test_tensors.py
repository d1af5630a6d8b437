"""One question tells whether a value may go where an earlier one went."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastrec._torch.tensors import never_matches, tensor_guard


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
