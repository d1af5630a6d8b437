"""The one place that copies tensors.

A recorded value has to be copied, because nobody promises to leave it alone: the next op may write into it in place,
the model may hand out a view of a buffer that it uses again, a rollout loop reuses its observation tensor. A record
that shared that memory would change after the fact, and nothing would tell.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import msgspec
import torch
from torch import Tensor

from fastrec._capture import CaptureSpec
from fastrec._contracts import Part
from fastrec._errors import OptionError
from fastrec._recording_limits import check_copyable as check_copyable
from fastrec._recording_limits import check_gradients as check_gradients

ROW_BITS = 20
"""A row is the number of its block, shifted by this many bits, plus its place in the block."""

MOST_ROWS = 1 << ROW_BITS

# Up to here one memcpy that holds the GIL is quicker than a dispatched copy, which may use several threads.
_MEMCPY_BYTES = 256 * 1024

# PYFUNCTYPE keeps the GIL: giving it up and taking it back would cost more than the copy, and would let
# another thread write into the value in between.
memcpy = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
    ctypes.cast(ctypes.memmove, ctypes.c_void_p).value or 0
)


@contextmanager
def aside() -> Iterator[None]:
    """Make tensors unseen by other recorders, and normal ones even where the user is in inference mode.

    A tensor made in inference mode could never be saved for a backward pass by whoever reads it.
    """
    with torch._C.DisableTorchFunction():
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                yield
        else:
            yield


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

    def make(self, count: int) -> Rows:
        """Rows for so many values."""
        if torch.is_inference_mode_enabled():
            with aside():
                return self.make(count)
        with torch._C.DisableTorchFunction():
            return Rows(
                torch.empty(
                    (count, *self.shape),
                    dtype=self.dtype,
                    device=self.device,
                    pin_memory=self.arrive_from is not None,
                ),
                self,
            )


class Rows:
    """Room for values of one layout, one below the other in one tensor."""

    __slots__ = ("_arrive_from", "_values", "nbytes", "origin")

    def __init__(self, values: Tensor, maker: RowMaker) -> None:
        self._values = values
        self._arrive_from = maker.arrive_from
        self.nbytes = maker.nbytes
        self.origin = values.data_ptr() if maker.is_flat else 0

    def write(self, place: int, value: Tensor) -> None:
        """Copy a value to a place."""
        with torch._C.DisableTorchFunction():
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
        with aside():
            return self._values.data


class Alone:
    """A value that lies by itself: for a large one, a clone is quicker than a row that is made for it."""

    __slots__ = ("_value", "nbytes", "origin")

    def __init__(self, value: Tensor, maker: RowMaker) -> None:
        if torch.is_inference_mode_enabled():
            with aside():
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
        with aside():
            return self._value.data.unsqueeze(0)


class More(Protocol):
    """Room for the values of a column that grows."""

    def __call__(self) -> Block:
        """A new block of rows."""

    def keep(self, value: Tensor) -> int | None:
        """The row of a contiguous value that is kept by itself, where a block would hold no second one."""


class Block:
    """Rows that are filled and let go together; the parts of one record lie at the same place of each part."""

    __slots__ = ("first", "gradients", "kept", "left", "next_row", "number", "parts", "stop")

    def __init__(self, number: int, count: int) -> None:
        self.number = number
        self.first = number << ROW_BITS
        self.stop = self.first + count
        self.next_row = itertools.count(self.first).__next__
        self.left = count
        self.parts: dict[Part, Rows | Alone] = {}
        self.kept: dict[Part, Tensor] = {}
        self.gradients: dict[int, Tensor] = {}


_FULL = Block(0, 0)


class HeldBlock(Block):
    """One value as it is: nobody else has it any more."""

    __slots__ = ()

    def __init__(self, number: int, value: Tensor) -> None:
        super().__init__(number, 1)
        with aside():
            self.kept["activation"] = value.data  # an alias with a version counter of its own


class HeldPass(msgspec.Struct, frozen=True):
    """The values of a pass as they are, until somebody reads them: each will be the one row of a block."""

    number: int
    values: list[Tensor]

    @property
    def rows(self) -> range:
        """The rows, in the order of the values."""
        return range(self.number << ROW_BITS, (self.number + len(self.values)) << ROW_BITS, MOST_ROWS)

    def blocks(self) -> Iterator[HeldBlock]:
        """The blocks, numbered from the first on."""
        return map(HeldBlock, itertools.count(self.number), self.values)


class Places:
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


def is_its_bytes(value: Tensor) -> bool:
    """Whether a copy of a value's bytes is a copy of the value."""
    return value.__class__ is Tensor and value.is_contiguous() and not value.is_neg()


class Bytewise(Protocol):
    """A column that can be told that a value is its bytes, and needs not look."""

    def append_bytes(self, value: Tensor) -> int:
        """Copy the bytes of a value now; its row."""

    def discard(self, row: int) -> None:
        """Forget a row."""


class BytesCopier:
    """A column of values each of which is its bytes, in the rows of another."""

    __slots__ = ("append", "discard")

    def __init__(self, rows: Bytewise) -> None:
        self.append = rows.append_bytes
        self.discard = rows.discard


class RowCopier:
    """A column that copies each value into the next row.

    The caller promises values of the layout that the blocks are made for.
    """

    __slots__ = ("_blocks", "_keep", "_places", "_room")

    def __init__(self, blocks: Mapping[int, Block], more: More) -> None:
        self._blocks = blocks
        self._keep = more.keep
        self._places = Places(more)
        self._use(self._places.block)

    def append(self, value: Tensor) -> int:
        """Copy a value now; its row."""
        return self.append_bytes(value) if is_its_bytes(value) else self._append_slowly(value)

    def append_bytes(self, value: Tensor) -> int:
        """The same for a value that is known to be its bytes, if it has any."""
        start = value.data_ptr()
        if start:
            next_row, stop, origin, nbytes = self._room
            row = next_row()
            if row < stop:
                memcpy(origin + row * nbytes, start, nbytes)
                return row
            kept = None if self._places.free else self._keep(value)
            if kept is not None:
                return kept
        return self._append_slowly(value)

    def discard(self, row: int) -> None:
        """Forget a row that nobody has read; it is used again."""
        self._places.give_back(self._blocks[row >> ROW_BITS], row)

    def _append_slowly(self, value: Tensor) -> int:
        if value.__class__ is not Tensor:
            check_copyable(value)  # the first value of this layout was, this one may be a shard or a fake
        block, row = self._places.take()
        try:
            block.parts["activation"].write(row - block.first, value)
        except RuntimeError:
            self._places.give_back(block, row)
            raise
        if self._room[1] < self._places.block.stop:
            self._use(self._places.block)
        return row

    def _use(self, block: Block) -> None:
        rows = block.parts["activation"]
        self._room: tuple[Callable[[], int], int, int, int]
        if rows.origin:
            self._room = (block.next_row, block.stop, rows.origin - block.first * rows.nbytes, rows.nbytes)
        else:
            self._room = (_no_row, block.stop, 0, 0)


_no_row: Callable[[], int] = itertools.repeat(1 << 62).__next__
"""Past the end of any block: sends each value the long way."""


def parts_of(value: Tensor, spec: CaptureSpec) -> dict[Part, Tensor]:
    """The tensors that a spec makes of a value: attached clones with keep_grad, else what is to be copied."""
    parts: dict[Part, Tensor] = {}
    if spec.save_raw:
        parts["activation"] = _attached_copy(value, spec) if spec.keep_grad else value
    if spec.transform is not None:
        result = _transformed(value, spec)
        parts["transformed_activation"] = _attached_copy(result, spec) if spec.keep_grad else result
    return parts


def kept_dtype(spec: CaptureSpec, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a value is kept: integers and booleans are never cast."""
    castable = dtype.is_floating_point or dtype.is_complex
    return spec.dtype if spec.dtype is not None and castable else dtype


def _attached_copy(value: Tensor, spec: CaptureSpec) -> Tensor:
    with torch._C.DisableTorchFunction():
        moved = value.to(device=spec.device, dtype=kept_dtype(spec, value.dtype))
        return value.clone() if moved is value else moved


def _transformed(value: Tensor, spec: CaptureSpec) -> Tensor:
    assert spec.transform is not None
    with torch._C.DisableTorchFunction(), torch.set_grad_enabled(spec.keep_grad):
        given = value if spec.keep_grad else value.detach()
        if given.is_inference():
            given = given.clone()  # its version could not tell that the transform wrote into the model's tensor
        version = 0 if given.is_inference() else given._version
        result = spec.transform(given)
        name = getattr(spec.transform, "__qualname__", None) or repr(spec.transform)
        if not isinstance(result, Tensor):
            raise OptionError(f"the transform {name} returned {result!r:.60}; it has to return a tensor")
        if not given.is_inference() and given._version != version:
            raise OptionError(
                f"the transform {name} wrote into its input, which is the model's own tensor; use functions that "
                "return a new tensor (relu instead of relu_)"
            )
    check_copyable(result)
    return result


def watch_gradient(value: Tensor, spec: CaptureSpec, gradients: dict[int, Tensor], row: int) -> None:
    """Keep the gradient that reaches a value, the sum if several backward passes do."""

    def keep(gradient: Tensor) -> None:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            arrived = gradient.detach().clone().to(device=spec.device, dtype=kept_dtype(spec, gradient.dtype))
            earlier = gradients.get(row)
            gradients[row] = arrived if earlier is None else earlier + arrived

    with torch._C.DisableTorchFunction():
        value.register_hook(keep)  # type: ignore[no-untyped-call]
