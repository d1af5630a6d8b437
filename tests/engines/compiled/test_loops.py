"""Loops over tensors: Python unbinds them once, and dynamo takes row after row."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import Recorder, record


class Unrolled(nn.Module):
    def __init__(self, unroll: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 5)
        self.unroll = unroll

    def forward(self, xs: Tensor, h: Tensor) -> Tensor:
        return self.unroll(self.cell, xs, h)


def over_rows(cell: Any, xs: Tensor, h: Tensor) -> Tensor:
    for x in xs:
        h = cell(x, h)
    return h


def over_pairs(cell: Any, xs: Tensor, h: Tensor) -> Tensor:
    for x, same, other in zip(xs, xs, xs.sin(), strict=True):
        h = cell(x * same + other, h)
    return h


def with_numbers(cell: Any, xs: Tensor, h: Tensor) -> Tensor:
    for i, x in enumerate(xs):
        h = cell(x, h) + i
    return h


def unpacked(cell: Any, xs: Tensor, h: Tensor) -> Tensor:
    a, b, _, d = xs
    return cell(a + d, h) + cell(b, h)


def twice_beside_rows(cell: Any, xs: Tensor, h: Tensor) -> Tensor:
    h = cell(xs[0] + xs[1], h)
    for x in xs:
        h = cell(x, h)
    for x in xs:
        h = cell(x, h)
    return h + xs[0].sum()


def first_only(cell: Any, xs: Tensor, h: Tensor) -> Tensor:
    for x in xs:
        return cell(x, h)
    return h


def nested(cell: Any, xs: Tensor, h: Tensor) -> Tensor:
    for x in xs:
        for row in x:
            h = h + row.sum()
    return h


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "unroll", [over_rows, over_pairs, with_numbers, unpacked, twice_beside_rows, first_only, nested]
)
def test_a_loop_over_a_tensor_is_recorded_as_without_compiling(unroll: Any, grad: bool) -> None:
    torch._dynamo.reset()
    model, xs, h = Unrolled(unroll), torch.randn(4, 2, 3), torch.zeros(2, 5)
    compiled = torch.compile(model, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        expected = list(record(model, (xs, h), keep_op=True))
        with Recorder(compiled, keep_op=True) as rec:
            out = [compiled(xs, h) for _ in range(2)]
        torch.testing.assert_close(out[1], model(xs, h))
    for index in range(2):
        records = list(rec.recording.iter_pass(index))
        assert [r.ctx.site for r in records] == [r.ctx.site for r in expected]
        for record_, other in zip(records, expected, strict=True):
            torch.testing.assert_close(record_.activation, other.activation)
