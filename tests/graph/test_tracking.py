"""Which writes in place a tensor has seen."""

import pytest
import torch
from torch import Tensor

from fastrec.graph.tracking import Writes


def written(value: Tensor, read: Tensor) -> bool:
    writes = Writes()
    writes.note(value, 5)
    return writes.since(read, 4) == (5,)


@pytest.mark.parametrize(
    ("write", "read", "shares"),
    [
        ((slice(0, 2),), (slice(1, 3),), True),
        ((slice(0, 2),), (slice(2, 4),), False),
        ((slice(None), 0), (slice(None), 1), False),
        ((slice(None), slice(0, 2)), (slice(None), slice(1, 3)), True),
        ((slice(None), slice(0, 2)), (slice(None), slice(2, 4)), False),
        ((slice(None), slice(2, 4)), (slice(None), slice(0, 2)), False),
        ((slice(2, 4), slice(2, 4)), (slice(0, 3), slice(0, 3)), True),
        ((slice(2, 4), slice(0, 1)), (slice(0, 3), slice(1, 3)), False),
        ((0,), (slice(None), 0), True),
        ((slice(0, 0),), (slice(None),), False),
    ],
)
def test_only_writes_to_the_same_elements_count(
    write: tuple[object, ...], read: tuple[object, ...], shares: bool
) -> None:
    base = torch.zeros(4, 4)
    assert written(base[write], base[read]) is shares
    assert not written(torch.zeros(4, 4)[write], base[read])


def test_writes_before_the_value_was_computed_do_not_count() -> None:
    writes, value = Writes(), torch.zeros(2)
    writes.note(value, 5)
    assert writes.since(value, 5) == ()
