"""Columns of records that are more than a copy: transformed, attached to autograd, or waiting for a gradient."""

from __future__ import annotations

import threading

from torch import Tensor

from fastrec._blocks import Block, Layout, Places
from fastrec._copying import parts_of, watch_gradient
from fastrec._torch.tensors import check_gradients
from fastrec.events.capture import CaptureSpec
from fastrec.recording._source import Part
from fastrec.sinks._ram_blocks import BlockPool, Growth


class PartsColumn:
    """Keeps the parts of each record at the same place, or attached clones as they are."""

    def __init__(self, pool: BlockPool, spec: CaptureSpec) -> None:
        self._pool = pool
        self._spec = spec
        self._lock = threading.Lock()
        self._places: dict[tuple[tuple[Part, Layout], ...], Places] = {}

    def append(self, value: Tensor) -> int:
        """Keep what the spec makes of a value; its row."""
        spec = self._spec
        check_gradients(value, spec)
        parts = parts_of(value, spec)
        if spec.keep_grad:
            block = self._pool.keep(parts)
            row = block.first
        else:
            block, row = self._copy(parts)
        if spec.save_gradient:
            watch_gradient(value, spec, block.gradients, row)
        return row

    def discard(self, row: int) -> None:
        """Forget a row. It is not used again: the gradient of a pass that failed may still arrive."""
        self._pool.release([row])

    def _copy(self, parts: dict[Part, Tensor]) -> tuple[Block, int]:
        key = tuple((part, Layout.of(tensor)) for part, tensor in parts.items())
        places = self._places.get(key)
        if places is None:
            with self._lock:
                places = self._places.get(key)
                if places is None:
                    places = self._places[key] = Places(Growth(self._pool, dict(key), self._spec))
        block, row = places.take()
        try:
            for part, tensor in parts.items():
                block.parts[part].write(row - block.first, tensor)
        except RuntimeError:
            self._pool.release([row])
            raise
        return block, row
