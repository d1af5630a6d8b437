"""Records in HDF5 files, written while the loop runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastrec._errors import GradientError, OptionError, SessionError
from fastrec._torch.tensors import check_copyable
from fastrec.events.capture import CaptureSpec
from fastrec.events.sites import Catalog
from fastrec.recording._source import Part
from fastrec.sinks._blocks import Layout, RowMaker
from fastrec.sinks._copying import BytesCopier, is_its_bytes, parts_of
from fastrec.sinks._protocol import ColumnWriter, PassLog
from fastrec.sinks.hdf5.layout import DataInfo
from fastrec.sinks.hdf5.options import HDF5Options
from fastrec.sinks.hdf5.pass_log import FilePassLog
from fastrec.sinks.hdf5.paths import Paths, expanded
from fastrec.sinks.hdf5.staging import Pool, Stage, StagedCopier


class HDF5Sink:
    """Writes records to an HDF5 file in the background, so that nothing flushed is lost if the process dies.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> sink = fastrec.sinks.HDF5Sink("relus.h5", flush_seconds=0.5)
    >>> with fastrec.Recorder(model, keep_op="relu", sink=sink) as rec:
    ...     out = model(torch.ones(2, 4))
    >>> fastrec.load("relus.h5").stack("relu_1").shape
    torch.Size([1, 2, 8])

    Arguments:
        path: a path that ends in .h5 or .hdf5, in which {rank}, {pid}, {worker} (of a DataLoader) and {host} are those
            of the process that opens the session. A recording that is longer than one file has room for is written to
            run.00000.h5, run.00001.h5 and so on; ``fastrec.load("run.h5")`` finds them.
        block_bytes: how many bytes of one site are handed over at once, at most; default 2 MiB.
        queue_bytes: how many bytes may wait to be written before the loop waits; default 64 MiB. Blocks that are being
            filled take half of it at most, or one value of each site if that is more, and blocks that are kept to be
            used again as much once more.
        segment_bytes: how many bytes of values one file has room for; default 1 GiB.
        flush_seconds: a pass that ended so long ago is safe if the process is killed; default 1.
        flush_rows: flush in the background whenever so many more records were kept; default never.
        durable: flushing waits until the disk has it (fsync), so that it is safe if the machine loses power.
        compression: "gzip", "lzf", "zstd" or "lz4" (the last two need the extra ``zstd``), or with a level, as in
            "gzip:4". A file is compressed when it is full or the session ends; while it grows it takes the room of its
            values. Nothing else is written meanwhile, so a long run wants smaller ``segment_bytes``.
        dtype: a floating dtype to cast floating values to, unless their capture names one.
        overwrite: remove an earlier recording of the same name, instead of refusing to write over it.
        append: continue an earlier recording of the same name, if there is one: pass indices and steps go on where it
            ended; an episode that was open then stays open, and the next one begins. Its files are kept as they are;
            run.h5 becomes run.00000.h5.
        locking: lock the file that is being written, so that no other recorder or HDF5 program changes it.

    Raises OptionError for options that do not fit. When the session opens: RecordingExistsError where there is a
    recording, RecordingFileError where none can be written. What stops the writer (a full disk) is raised as a
    RecordingFileError by the next pass, step, flush or at the end of the block; what was flushed stays readable.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        self._pattern = os.fspath(path)
        self._paths = Paths(expanded(path))
        try:
            self.options = HDF5Options(**options)
        except TypeError:
            known = ", ".join(HDF5Options.__struct_fields__)
            raise OptionError(f"HDF5Sink(..., {', '.join(options)}): the options are {known}") from None
        self._pool = Pool(self.options.block_bytes, self.options.queue_bytes)
        self._columns: dict[tuple[Any, ...], ColumnWriter] = {}
        self._lock = threading.Lock()
        self._ledger: FilePassLog | None = None
        self._catalog: Catalog | None = None

    @property
    def path(self) -> str:
        """The path to load."""
        return self._paths.path

    def open(self, catalog: Catalog) -> PassLog:
        """A session begins."""
        if self._ledger is not None:
            raise SessionError("this HDF5Sink already belongs to a session; give each recorder a sink of its own")
        self._paths = Paths(expanded(self._pattern))  # of this process, which need not be the one that made the sink
        self._pool = Pool(self.options.block_bytes, self.options.queue_bytes)
        self._catalog = catalog
        self._ledger = FilePassLog(self._pool, self._paths, catalog, self.options)
        return self._ledger

    def column(self, meta: int, value: Tensor) -> ColumnWriter:
        """Where values like this one go; metas that differ in nothing but their path share a column."""
        check_copyable(value)
        assert self._catalog is not None and self._ledger is not None
        found = self._catalog.metas[meta]
        spec = self._catalog.specs[found.spec]
        if spec.keep_grad or spec.save_gradient:
            raise GradientError(
                "gradients can't be kept by a file; add RAM, sink=[RAMSink(), ...], or leave keep_grad and "
                "save_gradient out"
            )
        spec = self._on_disk(spec, value)
        layout = Layout.of(value)
        key = (found.site, found.spec, layout)
        with self._lock:
            column = self._columns.get(key)
            if column is None:
                parts = StagedParts(self._ledger, self._pool, found.site, found.spec, spec)
                if spec.transform is None:
                    column = StagedCopier(self._pool, parts.stage({"activation": layout}))
                else:
                    column = parts
                self._columns[key] = column
        if isinstance(column, StagedCopier) and is_its_bytes(value):
            return BytesCopier(column)
        return column

    def flush(self) -> None:
        """Return once every pass that ended is in the file, and safe if this process is killed."""
        if self._ledger is None:
            raise SessionError("this HDF5Sink belongs to no session yet; open one with Recorder(..., sink=sink)")
        self._ledger.flush()

    def statistics(self) -> dict[str, int | float]:
        """What is safe, what waits, and how much the loop had to wait for the disk.

        ``passes_flushed`` and ``records_flushed`` are in the file; ``bytes_waiting`` of full blocks are not, of
        ``most_bytes_waiting`` at worst; ``bytes_written`` went there in full blocks. The loop waited ``waits`` times,
        ``seconds_waited`` together.
        """
        pool, writer = self._pool, self._ledger.writer if self._ledger is not None else None
        return {
            "passes_flushed": writer.passes_flushed if writer else 0,
            "records_flushed": writer.records_flushed if writer else 0,
            "bytes_waiting": pool.queued,
            "most_bytes_waiting": pool.most_queued,
            "bytes_written": pool.written_bytes,
            "waits": pool.waited,
            "seconds_waited": pool.waited_seconds,
        }

    def _on_disk(self, spec: CaptureSpec, value: Tensor) -> CaptureSpec:
        """The spec with the dtype that this file has for values of which it names none."""
        if self.options.dtype is None or spec.dtype is not None or not value.is_floating_point():
            return spec
        return spec.with_changes({"dtype": self.options.dtype})


class StagedParts:
    """Stages what a spec makes of each value; also a column itself, for transforms."""

    def __init__(self, ledger: FilePassLog, pool: Pool, site: int, number: int, spec: CaptureSpec) -> None:
        self._ledger = ledger
        self._pool = pool
        self._site = site
        self._number = number
        self._spec = spec
        self._lock = threading.Lock()
        self._stages: dict[tuple[tuple[Part, Layout], ...], Stage] = {}

    def append(self, value: Tensor) -> int:
        """Keep what the spec makes of a value; its row."""
        parts = parts_of(value, self._spec)
        stage = self.stage({part: Layout.of(tensor) for part, tensor in parts.items()})
        return stage.put(list(parts.values()))

    def discard(self, row: int) -> None:
        """Forget a row."""
        self._pool.discarded.append(row)

    def stage(self, layouts: Mapping[Part, Layout]) -> Stage:
        """Where parts of these layouts go."""
        key = tuple(layouts.items())
        stage = self._stages.get(key)
        if stage is None:
            with self._pool.exclusively(self._lock):
                stage = self._stages.get(key)
                if stage is None:
                    stage = self._stages[key] = self._made(layouts)
        return stage

    def _made(self, layouts: Mapping[Part, Layout]) -> Stage:
        on_host = self._spec.with_changes({"device": "cpu"})
        makers = [RowMaker(layout, on_host) for layout in layouts.values()]
        infos = [
            DataInfo(
                name=f"data/{self._ledger.site_name(self._site)}",
                part=part,
                shape=maker.shape,
                dtype=str(maker.dtype).removeprefix("torch."),
                site=self._site,
                spec=self._number,
            )
            for part, maker in zip(layouts, makers, strict=True)
        ]
        return Stage(self._pool, list(layouts), makers, self._ledger.register(infos))
