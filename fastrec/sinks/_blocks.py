"""Memory for kept values: rows of one layout, one below the other in one tensor.

    maker = RowMaker(Layout.of(value), spec)
    rows = maker.make(64)  # room for 64 values
    rows.write(3, value)
    rows.read()[3]

Both sinks keep copied values like this. Values of one place lie together, so ``stack`` can be a view, and a small value
costs a row and no tensor of its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastrec._torch.internals import no_function_modes
from fastrec._torch.tensors import outside_torch_modes
from fastrec.events.capture import CaptureSpec, kept_dtype

ROW_BITS = 20
"""A row is one number: that of its block, shifted by this many bits, plus its position in the block."""

MAX_ROWS = 1 << ROW_BITS

# Up to here one memcpy that holds the GIL is faster than a dispatched copy, which may use several threads.
_MAX_MEMCPY_BYTES = 256 * 1024


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
    """Makes rows for values of one layout, cast and moved as a spec asks.

    ``is_same`` says that a value is kept in its own dtype and on its own device, and ``takes_bytes`` that its bytes may
    be copied as they are. ``pinned_for`` is the GPU that values come from if they are kept on the host.
    """

    __slots__ = ("device", "dtype", "is_same", "nbytes", "pinned_for", "shape", "takes_bytes")

    def __init__(self, layout: Layout, spec: CaptureSpec) -> None:
        self.shape = layout.shape
        self.dtype = kept_dtype(spec, layout.dtype)
        self.device = layout.device if spec.device is None else torch.device(spec.device)
        self.nbytes = self.dtype.itemsize * math.prod(layout.shape)
        is_on_cpu = self.device.type == "cpu"
        self.pinned_for = layout.device if is_on_cpu and layout.device.type == "cuda" else None
        # A complex value may be lazily conjugated, which its bytes don't show.
        self.is_same = (self.dtype, self.device) == (layout.dtype, layout.device) and not self.dtype.is_complex
        self.takes_bytes = self.is_same and is_on_cpu and 0 < self.nbytes <= _MAX_MEMCPY_BYTES

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
                    pin_memory=self.pinned_for is not None,
                ),
                self,
            )


class BlockRows:
    """Room for values of one layout in one tensor.

    ``origin`` is the address of the first row where bytes may be copied into the rows, else 0; ``nbytes`` are the bytes
    of one row.
    """

    __slots__ = ("_pinned_for", "_values", "nbytes", "origin")

    def __init__(self, values: Tensor, maker: RowMaker) -> None:
        self._values = values
        self._pinned_for = maker.pinned_for
        self.nbytes = maker.nbytes
        self.origin = values.data_ptr() if maker.takes_bytes else 0

    def write(self, index: int, value: Tensor) -> None:
        """Copy a value into a row."""
        with no_function_modes():
            # detach() keeps the copy out of autograd; copy_ resolves strides and lazy negation or conjugation.
            self._values[index].copy_(value.detach(), non_blocking=self._pinned_for is not None)

    def read(self) -> Tensor:
        """All rows, as a tensor that shares the memory and has a version counter of its own.

        What was read may be saved for a backward pass. With a shared counter that pass would fail because a later row
        was written, or because another reader wrote into the tensor that it was given.
        """
        if self._pinned_for is not None:
            # Copies from the GPU are issued without waiting, so they are waited for here, once for all of them.
            torch.cuda.synchronize(self._pinned_for)
        with outside_torch_modes():
            return self._values.data
