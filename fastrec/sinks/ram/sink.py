"""Records in RAM: values of one site and layout lie together in blocks, everything else in flat arrays."""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor

from fastrec._errors import SessionError
from fastrec._torch.tensors import check_copyable
from fastrec.events.capture import CaptureSpec, check_gradients
from fastrec.events.sites import Catalog
from fastrec.recording._source import Part, Source
from fastrec.sinks._blocks import Block, Layout, RowAllocator
from fastrec.sinks._copying import BytesCopier, RowCopier, is_its_bytes, parts_of, watch_gradient
from fastrec.sinks._protocol import ColumnWriter, PassLog
from fastrec.sinks.ram.pass_log import RAMPassLog
from fastrec.sinks.ram.pool import BlockAllocator, BlockPool


class RAMSink:
    """Keeps records in memory, each on the device where its value is, unless its capture says otherwise.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> with fastrec.Recorder(model, keep_op="relu", sink=fastrec.sinks.RAMSink()) as rec:
    ...     out = model(torch.ones(2, 4))
    >>> rec.recording.stack("relu_1").shape
    torch.Size([1, 2, 8])

    It takes no arguments, and is what a recorder uses by default. A sink belongs to one session; how long it keeps
    records is up to the recorder's ``retain`` and ``pop``.
    """

    def __init__(self) -> None:
        self._pool = BlockPool()
        self._columns: dict[tuple[Any, ...], ColumnWriter] = {}
        self._lock = threading.Lock()
        self._catalog: Catalog | None = None
        self._ledger: RAMPassLog | None = None

    def open(self, catalog: Catalog) -> PassLog:
        """A session begins."""
        if self._ledger is not None:
            raise SessionError("this RAMSink already belongs to a session; give each recorder a sink of its own")
        self._catalog = catalog
        self._ledger = RAMPassLog(catalog, self._pool)
        return self._ledger

    def column(self, meta: int, value: Tensor) -> ColumnWriter:
        """Where values like this one go; metas that differ in nothing but their path share a column."""
        check_copyable(value)
        assert self._catalog is not None
        found = self._catalog.metas[meta]
        layout = Layout.of(value)
        key = (found.site, found.spec, layout)
        with self._lock:
            column = self._columns.get(key)
            if column is None:
                spec = self._catalog.specs[found.spec]
                if spec.keep_grad or spec.save_gradient or spec.transform is not None:
                    column = PartsColumn(self._pool, spec)
                else:
                    column = RowCopier(self._pool.blocks, BlockAllocator(self._pool, {"activation": layout}, spec))
                self._columns[key] = column
        if isinstance(column, RowCopier) and is_its_bytes(value):
            return BytesCopier(column)
        return column

    @property
    def pool(self) -> BlockPool:
        """The blocks of its records."""
        return self._pool

    def source(self) -> Source:
        """The passes that ended so far; later ones do not change it."""
        return self._opened().source()

    def take(self) -> Source:
        """The passes that ended so far, which are forgotten here."""
        ledger = self._ledger or self._opened()
        return ledger.take()

    def trim(self, *, passes: int | None = None, steps: int | None = None) -> None:
        """Forget all but the last passes; or all but the last steps of each phase, where a phase has steps."""
        if steps is not None:
            self._opened().trim(steps, steps=True)
        elif passes is not None:
            self._opened().trim(passes, steps=False)

    def _opened(self) -> RAMPassLog:
        if self._ledger is None:
            raise SessionError("this RAMSink belongs to no session yet; open one with Recorder(..., sink=sink)")
        return self._ledger


class PartsColumn:
    """Keeps the parts of each record at the same place, or attached clones as they are."""

    def __init__(self, pool: BlockPool, spec: CaptureSpec) -> None:
        self._pool = pool
        self._spec = spec
        self._lock = threading.Lock()
        self._places: dict[tuple[tuple[Part, Layout], ...], RowAllocator] = {}

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
                    places = self._places[key] = RowAllocator(BlockAllocator(self._pool, dict(key), self._spec))
        block, row = places.take()
        try:
            for part, tensor in parts.items():
                block.parts[part].write(row - block.first, tensor)
        except RuntimeError:
            self._pool.release([row])
            raise
        return block, row
