"""How a value gets into a row of a block in RAM."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastrec import CaptureSpec
from fastrec._errors import UnsupportedTensorError
from fastrec.sinks._blocks import Layout, RowMaker
from fastrec.sinks.ram.columns import RowCopier
from fastrec.sinks.ram.pool import Block, RowAllocator
from tests.contracts.sink import PLAIN, assert_same
from tests.helpers.modes import GETTERS, SeenNames


class Allocator:
    """Makes blocks of a given number of rows, where a RAM sink's would grow."""

    def __init__(self, blocks: dict[int, Block], make_block: Callable[[int], Block]) -> None:
        self.blocks = blocks
        self.make_block = make_block

    def make(self) -> Block:
        block = self.make_block(len(self.blocks))
        return self.blocks.setdefault(block.number, block)

    def keep_clone(self, value: Tensor) -> int | None:
        return None


def column_for(value: Tensor, spec: CaptureSpec = PLAIN, rows: int = 4) -> tuple[RowCopier, dict[int, Block]]:
    blocks: dict[int, Block] = {}
    maker = RowMaker(Layout.of(value), spec)

    def make_block(number: int) -> Block:
        block = Block(number, rows)
        block.parts["activation"] = maker.make(rows)
        return block

    return RowCopier(blocks, Allocator(blocks, make_block)), blocks  # type: ignore[arg-type]


def value_at(blocks: dict[int, Block], row: int) -> Tensor:
    block = blocks[row >> 20]
    return block.parts["activation"].read()[row - block.first]


@pytest.mark.parametrize("contiguous", [True, False])
def test_rows_are_copies_in_turn(contiguous: bool) -> None:
    values = [torch.randn(6, 4) if contiguous else torch.randn(4, 6).t() for _ in range(11)]
    column, blocks = column_for(values[0])
    rows = [column.append(value) for value in values]
    assert rows == [(i // 4 << 20) + i % 4 for i in range(11)]
    for row, value in zip(rows, values, strict=True):
        assert_same(value_at(blocks, row), value)


def test_the_quick_way_copies_what_the_long_way_copies() -> None:
    for value in (torch.randn(5), torch.arange(5), torch.tensor(True), torch.randn(5).half()):
        column, blocks = column_for(value)
        assert_same(value_at(blocks, column.append(value)), value)
        assert_same(value_at(blocks, column._append_slowly(value)), value)


def test_discarded_rows_are_used_again() -> None:
    column, blocks = column_for(torch.zeros(2), rows=3)
    rows = [column.append(torch.full((2,), float(i))) for i in range(3)]
    column.discard(rows[1])
    assert column.append(torch.full((2,), 7.0)) == rows[1]
    assert [value_at(blocks, row)[0].item() for row in rows] == [0.0, 7.0, 2.0]
    assert column.append(torch.zeros(2)) == 1 << 20


def test_a_row_whose_copy_failed_is_used_again() -> None:
    column, blocks = column_for(torch.zeros(3), rows=1)
    with pytest.raises(RuntimeError):
        column.append(torch.zeros(8)[::2])
    assert column.append(torch.ones(3)) == 0 and len(blocks) == 1


def test_a_fake_among_plain_values_is_refused() -> None:
    column, _ = column_for(torch.zeros(3))
    with FakeTensorMode():
        fake = torch.zeros(3)
    with pytest.raises(UnsupportedTensorError, match="FakeTensor"):
        column.append(fake)


def test_growing_is_the_only_long_way_of_a_plain_value(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, append_slowly = [], RowCopier._append_slowly
    monkeypatch.setattr(RowCopier, "_append_slowly", lambda self, value: slow.append(0) or append_slowly(self, value))
    column, _ = column_for(torch.zeros(3), rows=10)
    for _ in range(100):
        column.append(torch.zeros(3))
    assert len(slow) == 9


def test_rows_are_handed_out_once_even_while_growing() -> None:
    allocator = RowAllocator(Allocator({}, lambda number: Block(number, 3)))  # type: ignore[arg-type]
    rows = [allocator.take()[1] for _ in range(20)]
    assert len(set(rows)) == 20


@pytest.mark.parametrize(
    "value", [torch.randn(3, 4), torch.randn(4, 3).t(), torch.randn(300, 300), torch.randn(3, dtype=torch.complex64)]
)
def test_copying_is_unseen_by_other_modes(value: Tensor) -> None:
    column, _ = column_for(value)
    with SeenNames() as seen:
        for _ in range(9):
            column.append(value)
    assert set(seen.names) <= GETTERS


def test_copying_in_inference_mode_makes_normal_memory() -> None:
    with torch.inference_mode():
        value = torch.randn(4)
        column, blocks = column_for(value)
        rows = [column.append(value), column.append(torch.randn(8)[::2])]
        read = [value_at(blocks, row) for row in rows]
    assert not any(block.parts["activation"].read().is_inference() for block in blocks.values())
    assert_same(read[0], value)


def test_values_are_cast_as_the_spec_says() -> None:
    value = torch.randn(3)
    column, blocks = column_for(value, CaptureSpec(dtype=torch.float16))
    assert_same(value_at(blocks, column.append(value)), value.half())


def test_reading_and_writing_in_place_moves_nobody_elses_version() -> None:
    value = torch.randn(4)
    column, blocks = column_for(value)
    first, second = column.append(value), column.append(value)
    weight = torch.ones(4, requires_grad=True)
    loss = (weight * value_at(blocks, first)).sum()
    value_at(blocks, second).zero_()
    loss.backward()
    assert weight.grad is not None
