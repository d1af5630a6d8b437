"""The sink that keeps records in memory: the public class, which ties columns, pool and pass log together."""

from __future__ import annotations

import threading

from torch import Tensor

from fastrec._errors import SessionError
from fastrec._torch.tensors import check_copyable
from fastrec.events.sites import Catalog
from fastrec.sinks._blocks import Layout
from fastrec.sinks._copying import BytesCopier, is_its_bytes
from fastrec.sinks._protocol import ColumnWriter
from fastrec.sinks.ram.columns import PartsColumn, RowCopier
from fastrec.sinks.ram.pass_log import RAMPassLog
from fastrec.sinks.ram.pool import BlockAllocator, BlockPool
from fastrec.sinks.ram.source import RAMSource


class RAMSink:
    """Keeps records in memory, each on the device where its value is, unless its capture says otherwise.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> with fastrec.Recorder(model, keep_op="relu", sink=fastrec.sinks.RAMSink()) as rec:
    ...     out = model(torch.ones(2, 4))
    >>> rec.recording.stack("relu_1").shape
    torch.Size([1, 2, 8])

    It takes no arguments, and is what a recorder uses by default. A sink belongs to one session. How long it keeps
    records is up to the recorder's ``retain`` and ``pop``.
    """

    def __init__(self) -> None:
        self._pool = BlockPool()
        self._columns: dict[tuple[int, int, Layout], RowCopier | PartsColumn] = {}
        self._lock = threading.Lock()
        self._catalog: Catalog | None = None
        self._pass_log: RAMPassLog | None = None

    def open(self, catalog: Catalog) -> RAMPassLog:
        """Begin a session."""
        if self._pass_log is not None:
            raise SessionError("this RAMSink already belongs to a session; give each recorder a sink of its own")
        self._catalog = catalog
        self._pass_log = RAMPassLog(catalog, self._pool)
        return self._pass_log

    def column(self, meta: int, value: Tensor) -> ColumnWriter:
        """Where values like this one go; metas that differ only in the path that led to them share a column."""
        check_copyable(value)
        assert self._catalog is not None
        facts = self._catalog.metas[meta]
        layout = Layout.of(value)
        key = (facts.site, facts.spec, layout)
        with self._lock:
            column = self._columns.get(key)
            if column is None:
                spec = self._catalog.specs[facts.spec]
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

    def source(self) -> RAMSource:
        """The passes that ended so far; later ones do not change it."""
        return self._opened().source()

    def take(self) -> RAMSource:
        """The passes that ended so far, which are forgotten here."""
        pass_log = self._pass_log or self._opened()
        return pass_log.take()

    def trim(self, *, passes: int | None = None, steps: int | None = None) -> None:
        """Forget all but the last passes; or all but the last steps of each phase, where a phase has steps."""
        if steps is not None:
            self._opened().trim(steps, by_step=True)
        elif passes is not None:
            self._opened().trim(passes, by_step=False)

    def _opened(self) -> RAMPassLog:
        if self._pass_log is None:
            raise SessionError("this RAMSink belongs to no session yet; open one with Recorder(..., sink=sink)")
        return self._pass_log
