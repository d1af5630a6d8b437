"""Who wrote into memory that several tensors share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class _Write(NamedTuple):
    op: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


class Writes:
    """In-place writes by the memory that they went to."""

    def __init__(self) -> None:
        self.by_storage: dict[int, list[_Write]] = {}

    def note(self, value: Tensor, op: int) -> None:
        """An operation wrote to a tensor."""
        key = storage_of(value)
        if key is not None:
            write = _Write(op, tuple(value.shape), value.stride(), int(value.storage_offset()))
            self.by_storage.setdefault(key, []).append(write)

    def since(self, value: Tensor, op: int) -> tuple[int, ...]:
        """The operations after a given one that wrote to memory of a tensor."""
        key = storage_of(value)
        found = self.by_storage.get(key) if key is not None else None
        # Memory that was freed and taken again is no danger: its new owner came after the writes to the old one.
        if not found or found[-1].op <= op:
            return ()
        shape, strides, offset = tuple(value.shape), value.stride(), int(value.storage_offset())
        return tuple(
            write.op
            for write in found
            if write.op > op and _overlap(shape, strides, offset, write.shape, write.strides, write.offset)
        )


def storage_of(value: Tensor) -> int | None:
    """The identity of a tensor's memory, None where it has none of its own."""
    try:
        return int(value.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a tensor without memory of its own: sparse, fake, wrapped
        return None


def _overlap(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    other_shape: tuple[int, ...],
    other_strides: tuple[int, ...],
    other_offset: int,
) -> bool:
    """Whether two views of one memory share elements; yes where that is not easily told."""
    if 0 in shape or 0 in other_shape:
        return False
    end = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    other_end = other_offset + sum((n - 1) * s for n, s in zip(other_shape, other_strides, strict=True))
    if end < other_offset or other_end < offset:
        return False
    if strides != other_strides:
        return True
    axes = sorted(
        (axis for axis in zip(strides, shape, other_shape, strict=True) if axis[0] > 0), key=lambda axis: -axis[0]
    )
    # Equal strides, so both are boxes in one grid, if each stride is beyond the reach of the smaller ones.
    for place, (stride, _, _) in enumerate(axes):
        if sum((max(n, m) - 1) * s for s, n, m in axes[place + 1 :]) >= stride:
            return True
    return _meet(axes, other_offset - offset)


def _meet(axes: list[tuple[int, int, int]], difference: int) -> bool:
    """Whether two boxes in a grid share an element, from how far apart they begin."""
    if not axes:
        return difference == 0
    stride, size, other_size = axes[0]
    steps = difference // stride
    return any(-other_size < n < size and _meet(axes[1:], difference - n * stride) for n in (steps, steps + 1))
