"""The one place that copies tensors.

A recorded value has to be copied, because nobody promises to leave it alone: the next op may write into it in place,
the model may hand out a view of a buffer that it uses again, a rollout loop reuses its observation tensor. A record
that shared that memory would change after the fact, and nothing would tell.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from fastrec._errors import OptionError
from fastrec._torch.internals import no_function_modes
from fastrec._torch.tensors import check_copyable
from fastrec.events.capture import CaptureSpec, kept_dtype
from fastrec.recording._source import Part
from fastrec.sinks._blocks import ROW_BITS, Block, RowAllocator

# PYFUNCTYPE keeps the GIL: giving it up and taking it back would cost more than the copy, and would let
# another thread write into the value in between.
memcpy = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
    ctypes.cast(ctypes.memmove, ctypes.c_void_p).value or 0
)


class BlockSource(Protocol):
    """Room for the values of a column that grows."""

    def __call__(self) -> Block:
        """A new block of rows."""

    def keep(self, value: Tensor) -> int | None:
        """The row of a contiguous value that is kept by itself, where a block would hold no second one."""


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

    def __init__(self, blocks: Mapping[int, Block], more: BlockSource) -> None:
        self._blocks = blocks
        self._keep = more.keep
        self._places = RowAllocator(more)
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


def _attached_copy(value: Tensor, spec: CaptureSpec) -> Tensor:
    with no_function_modes():
        moved = value.to(device=spec.device, dtype=kept_dtype(spec, value.dtype))
        return value.clone() if moved is value else moved


def _transformed(value: Tensor, spec: CaptureSpec) -> Tensor:
    assert spec.transform is not None
    with no_function_modes(), torch.set_grad_enabled(spec.keep_grad):
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
        with no_function_modes(), torch.no_grad():
            arrived = gradient.detach().clone().to(device=spec.device, dtype=kept_dtype(spec, gradient.dtype))
            earlier = gradients.get(row)
            gradients[row] = arrived if earlier is None else earlier + arrived

    with no_function_modes():
        value.register_hook(keep)  # type: ignore[no-untyped-call]
