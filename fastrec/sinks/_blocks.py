"""Where kept values lie: rows of blocks, each of which one record has."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from fastrec._torch.internals import no_function_modes
from fastrec._torch.tensors import outside_torch_modes
from fastrec.events.capture import CaptureSpec, kept_dtype
from fastrec.recording._source import Part

ROW_BITS = 20
"""A row is the number of its block, shifted by this many bits, plus its place in the block."""

MAX_ROWS = 1 << ROW_BITS

# Up to here one memcpy that holds the GIL is quicker than a dispatched copy, which may use several threads.
_MEMCPY_BYTES = 256 * 1024


class Layout(NamedTuple):
    """What values need to have in common to lie in one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, value: Tensor) -> Layout:
        """The layout of a value."""
        return cls(tuple(value.shape), value.dtype, value.device)


class RowMaker:
    """Makes room for values of one layout, cast and moved as a spec asks."""

    __slots__ = ("arrive_from", "device", "dtype", "is_flat", "is_same", "nbytes", "shape")

    def __init__(self, layout: Layout, spec: CaptureSpec) -> None:
        self.shape = layout.shape
        self.dtype = kept_dtype(spec, layout.dtype)
        self.device = layout.device if spec.device is None else torch.device(spec.device)
        self.nbytes = self.dtype.itemsize * math.prod(layout.shape)
        on_cpu = self.device.type == "cpu"
        self.arrive_from = layout.device if on_cpu and layout.device.type == "cuda" else None
        # A complex value may be lazily conjugated, which its bytes don't tell.
        self.is_same = (self.dtype, self.device) == (layout.dtype, layout.device) and not self.dtype.is_complex
        self.is_flat = self.is_same and on_cpu and 0 < self.nbytes <= _MEMCPY_BYTES

    def make(self, count: int) -> BlockRows:
        """Rows for so many values."""
        if torch.is_inference_mode_enabled():
            with outside_torch_modes():
                return self.make(count)
        with no_function_modes():
            return BlockRows(
                torch.empty(
                    (count, *self.shape),
                    dtype=self.dtype,
                    device=self.device,
                    pin_memory=self.arrive_from is not None,
                ),
                self,
            )


class BlockRows:
    """Room for values of one layout, one below the other in one tensor."""

    __slots__ = ("_arrive_from", "_values", "nbytes", "origin")

    def __init__(self, values: Tensor, maker: RowMaker) -> None:
        self._values = values
        self._arrive_from = maker.arrive_from
        self.nbytes = maker.nbytes
        self.origin = values.data_ptr() if maker.is_flat else 0

    def write(self, place: int, value: Tensor) -> None:
        """Copy a value to a place."""
        with no_function_modes():
            # detach() keeps the copy out of autograd; copy_ resolves strides and lazy negation or conjugation.
            self._values[place].copy_(value.detach(), non_blocking=self._arrive_from is not None)

    def read(self) -> Tensor:
        """All rows, through an alias with a version counter of its own.

        What was read may be saved for a backward pass, which must not fail because a later row was written, or because
        another reader wrote into his.
        """
        if self._arrive_from is not None:
            # Copies from the device are issued without waiting, so waiting is due here, once for all of them.
            torch.cuda.synchronize(self._arrive_from)
        with outside_torch_modes():
            return self._values.data


class SingleTensor:
    """A value that lies by itself: for a large one, a clone is quicker than a row that is made for it."""

    __slots__ = ("_value", "nbytes", "origin")

    def __init__(self, value: Tensor, maker: RowMaker) -> None:
        if torch.is_inference_mode_enabled():
            with outside_torch_modes():
                self._value = value.detach().clone()
        else:
            self._value = value.detach().clone()
        self.nbytes = maker.nbytes
        self.origin = 0

    def write(self, place: int, value: Tensor) -> None:
        """Put another value in its place."""
        self._value.copy_(value)

    def read(self) -> Tensor:
        """It, as the only row, through an alias as rows are read."""
        with outside_torch_modes():
            return self._value.data.unsqueeze(0)


class Block:
    """Rows that are filled and let go together; the parts of one record lie at the same place of each part."""

    __slots__ = ("first", "gradients", "kept", "left", "next_row", "number", "parts", "stop")

    def __init__(self, number: int, count: int) -> None:
        self.number = number
        self.first = number << ROW_BITS
        self.stop = self.first + count
        self.next_row = itertools.count(self.first).__next__
        self.left = count
        self.parts: dict[Part, BlockRows | SingleTensor] = {}
        self.kept: dict[Part, Tensor] = {}
        self.gradients: dict[int, Tensor] = {}


_FULL = Block(0, 0)


class UncopiedBlock(Block):
    """One value as it is: nobody else has it any more."""

    __slots__ = ()

    def __init__(self, number: int, value: Tensor) -> None:
        super().__init__(number, 1)
        with outside_torch_modes():
            self.kept["activation"] = value.data  # an alias with a version counter of its own


class UncopiedPass(msgspec.Struct, frozen=True):
    """The values of a pass as they are, until somebody reads them: each will be the one row of a block."""

    number: int
    values: list[Tensor]

    @property
    def rows(self) -> range:
        """The rows, in the order of the values."""
        return range(self.number << ROW_BITS, (self.number + len(self.values)) << ROW_BITS, MAX_ROWS)

    def blocks(self) -> Iterator[UncopiedBlock]:
        """The blocks, numbered from the first on."""
        return map(UncopiedBlock, itertools.count(self.number), self.values)


class RowAllocator:
    """Hands out one row after the other, and asks for a new block when one is full.

    Any number of threads may take rows at once: a row belongs to whom the block's counter gave it, so only
    going on to a new block takes a lock.
    """

    __slots__ = ("_lock", "_more", "block", "free")

    def __init__(self, more: Callable[[], Block]) -> None:
        self._more = more
        self._lock = threading.Lock()
        self.free: list[tuple[Block, int]] = []
        self.block = more()

    def take(self) -> tuple[Block, int]:
        """A row that nobody else has, and its block."""
        block = self.block
        row = block.next_row()
        while row >= block.stop:
            with self._lock:
                if self.free:
                    return self.free.pop()
                if self.block is block:
                    self.block = self._more()
            block = self.block
            row = block.next_row()
        if block.stop - block.first == 1 and self.block is block:
            # Full now. Held until the next value comes, it would keep that one from using the same memory, still warm.
            self.block = _FULL
        return block, row

    def give_back(self, block: Block, row: int) -> None:
        """A row that nobody has read is free again."""
        self.free.append((block, row))
