import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

from fastrec._errors import OptionError, UnsupportedTensorError
from fastrec.events.capture import CaptureSpec, kept_dtype
from fastrec.sinks._blocks import Block, Layout, RowAllocator, RowMaker
from fastrec.sinks._copying import RowCopier, parts_of, watch_gradient
from tests.contracts.sink import assert_same


class Seen(TorchFunctionMode):
    """Another recorder: sees what runs beneath it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", repr(func)))
        return func(*args, **(kwargs or {}))


PLAIN = CaptureSpec()
GETTERS = {"is_contiguous", "is_neg", "data_ptr", "__get__"}


def column_for(value: Tensor, spec: CaptureSpec = PLAIN, rows: int = 4) -> tuple[RowCopier, dict[int, Block]]:
    blocks: dict[int, Block] = {}
    maker = RowMaker(Layout.of(value), spec)

    class More:
        def __call__(self) -> Block:
            block = Block(len(blocks), rows)
            block.parts["activation"] = maker.make(rows)
            return blocks.setdefault(block.number, block)

        def keep(self, value: Tensor) -> int | None:
            return None

    return RowCopier(blocks, More()), blocks


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
    slow, found = [], RowCopier._append_slowly
    monkeypatch.setattr(RowCopier, "_append_slowly", lambda self, value: [slow.append(0), found(self, value)][1])
    column, _ = column_for(torch.zeros(3), rows=10)
    for _ in range(100):
        column.append(torch.zeros(3))
    assert len(slow) == 9


def test_places_are_handed_out_once_even_while_growing() -> None:
    numbers = itertools.count()
    places = RowAllocator(lambda: Block(next(numbers), 3))
    rows = [places.take()[1] for _ in range(20)]
    assert len(set(rows)) == 20


@pytest.mark.parametrize(
    "value", [torch.randn(3, 4), torch.randn(4, 3).t(), torch.randn(300, 300), torch.randn(3, dtype=torch.complex64)]
)
def test_copying_is_unseen_by_other_modes(value: Tensor) -> None:
    column, _ = column_for(value)
    with Seen() as seen:
        for _ in range(9):
            column.append(value)
    assert set(seen.names) <= GETTERS


def test_transforms_clones_and_gradients_are_unseen_by_other_modes() -> None:
    spec = CaptureSpec(keep_grad=True, transform=lambda t: t.mean(0) * 2, dtype=torch.float64)
    leaf = torch.randn(3, requires_grad=True)
    value = leaf * 2
    gradients: dict[int, Tensor] = {}
    with Seen() as seen:
        parts_of(value, spec)
        watch_gradient(value, spec, gradients, 0)
    assert set(seen.names) <= GETTERS
    value.sum().backward()
    assert_same(gradients[0], torch.ones(3, dtype=torch.float64))


def test_copying_in_inference_mode_makes_normal_memory() -> None:
    with torch.inference_mode():
        value = torch.randn(4)
        column, blocks = column_for(value)
        rows = [column.append(value), column.append(torch.randn(8)[::2])]
        read = [value_at(blocks, row) for row in rows]
    assert not any(block.parts["activation"].read().is_inference() for block in blocks.values())
    assert_same(read[0], value)


def test_only_floating_and_complex_values_are_cast() -> None:
    spec = CaptureSpec(dtype=torch.float16)
    for dtype in (torch.int64, torch.bool, torch.uint8):
        assert kept_dtype(spec, dtype) == dtype
    assert kept_dtype(spec, torch.float32) == torch.float16
    value = torch.randn(3)
    column, blocks = column_for(value, spec)
    assert_same(value_at(blocks, column.append(value)), value.half())


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


def test_reading_and_writing_in_place_moves_nobody_elses_version() -> None:
    value = torch.randn(4)
    column, blocks = column_for(value)
    first, second = column.append(value), column.append(value)
    weight = torch.ones(4, requires_grad=True)
    loss = (weight * value_at(blocks, first)).sum()
    value_at(blocks, second).zero_()
    loss.backward()
    assert weight.grad is not None


def test_values_from_a_gpu_wait_once_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    made: list[dict[str, Any]] = []
    empty = torch.empty

    def without_pinning(shape: Any, **facts: Any) -> Tensor:
        made.append(dict(facts))
        return empty(shape, **{**facts, "pin_memory": False})

    monkeypatch.setattr(torch, "empty", without_pinning)
    gpu = torch.device("cuda", 0)
    rows = RowMaker(Layout((3,), torch.float32, gpu), CaptureSpec(device="cpu")).make(4)
    for place in range(4):
        rows.write(place, torch.full((3,), float(place)))
    assert made[0]["pin_memory"] and not waited and rows.origin == 0
    assert rows.read()[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert waited == [gpu]
