"""``HDF5Sink``: records in HDF5 files, written while the loop runs.

A value that is kept is copied into a block of memory (``staging``), a pass that ends is noted (``pass_log``), and a
thread puts both in the file (``writer``). ``docs/internals/files.md`` follows a byte on its way there and back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastrec._errors import OptionError, RecordingFileError, SessionError
from fastrec._torch.tensors import check_copyable
from fastrec.events.capture import CaptureSpec
from fastrec.events.process import Process
from fastrec.events.sites import Catalog
from fastrec.recording._source import Part
from fastrec.sinks._blocks import Layout, RowMaker
from fastrec.sinks._copying import BytesCopier, is_its_bytes, parts_of
from fastrec.sinks._protocol import ColumnWriter, PassLog
from fastrec.sinks.hdf5.layout import DataInfo, dtype_name
from fastrec.sinks.hdf5.options import HDF5Options
from fastrec.sinks.hdf5.pass_log import FilePassLog
from fastrec.sinks.hdf5.paths import Paths, current_folder, expand_path, is_folder, name_in_folder, os_message
from fastrec.sinks.hdf5.process import current_process
from fastrec.sinks.hdf5.staging import Pool, Stage, StagedCopier
from fastrec.sinks.hdf5.system import check_writable_here


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
        path: a path that ends in .h5 or .hdf5. {rank}, {pid}, {worker} (of a DataLoader) and {host} in it are replaced
            by those of the process that opens the session. A recording that needs more than one file is written to
            run.00000.h5, run.00001.h5 and so on; ``fastrec.load("run.h5")`` finds them. Or a folder, such as "run/":
            each process writes a file of its own there, under a name that no other has, and ``fastrec.load("run/")``
            reads all of them.
        block_bytes: how many bytes of one site are handed over to be written at once, at most; default 2 MiB.
        queue_bytes: how many bytes may wait to be written before the loop waits; default 64 MiB. Blocks that are being
            filled take half as much at most, or one value of each site if that is more. Blocks that are kept to be used
            again take up to as much once more.
        segment_bytes: how many bytes of values one file has room for, from 1 MiB up; default 1 GiB.
        flush_seconds: after how many seconds a pass that ended is safe if the process is killed; default 1.
        flush_rows: flush in the background after this many more records, too; default never.
        durable: let a flush wait until the disk has everything (fsync), so that it is safe from power cuts too.
        compression: "gzip", "lzf", "zstd" or "lz4" (the last two need the extra ``zstd``), or with a level, as in
            "gzip:4". A file is compressed when it is full or the session ends; while it grows it takes the room of its
            values. Nothing else is written meanwhile, so a long run wants smaller ``segment_bytes``.
        dtype: a floating dtype to cast floating values to, unless their capture names one.
        overwrite: remove an earlier recording of the same name, instead of refusing to write over it.
        append: continue an earlier recording of the same name, if there is one. Pass indices and steps go on where it
            ended; an episode that was open then stays open, and the next one begins. Its files are kept as they are;
            run.h5 becomes run.00000.h5.
        locking: lock the file that is being written, so that no other recorder or HDF5 program changes it.
        role: what this process does, such as "rollout"; it stands in the file, and in its name in a folder. By default
            "worker" in a worker of a DataLoader, else "main" or the role that torchrun was given.

    Raises OptionError for options that are not allowed. When the session opens: RecordingExistsError where there is a
    recording, RecordingFileError where none can be written. What stops the writer (a full disk) is raised as a
    RecordingFileError by the next pass, step, flush or at the end of the block; what was flushed stays readable.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        check_writable_here()
        self._pattern = os.fspath(path)
        self._folder = "" if os.path.isabs(self._pattern) else current_folder()
        try:
            self.options = HDF5Options(**options)
        except TypeError:
            names = ", ".join(HDF5Options.__struct_fields__)
            raise OptionError(f"HDF5Sink(..., {', '.join(options)}): the options are {names}") from None
        self._paths: Paths | None = None
        # A path that makes no sense is refused at once. The rank may not be known yet.
        path = os.path.join(self._folder, expand_path(self._pattern, Process(rank=0)))
        if is_folder(path):
            self._check_folder_options()
        else:
            Paths(path)
        self._pool = Pool(self.options.block_bytes, self.options.queue_bytes)
        self._columns: dict[tuple[Any, ...], ColumnWriter] = {}
        self._lock = threading.Lock()
        self._pass_log: FilePassLog | None = None
        self._catalog: Catalog | None = None

    @property
    def path(self) -> str:
        """The path to load: the file of this process, or a folder in which it has not begun one yet."""
        if self._paths is None:
            return os.path.join(self._folder, expand_path(self._pattern, current_process(self.options.role)))
        return self._paths.path

    def open(self, catalog: Catalog) -> PassLog:
        """A session begins."""
        if self._pass_log is not None:
            raise SessionError("this HDF5Sink already belongs to a session; give each recorder a sink of its own")
        self._paths = paths = self._paths_of_process()  # which may not be the one that made the sink
        self._pool = Pool(self.options.block_bytes, self.options.queue_bytes)
        self._catalog = catalog
        is_in_folder = is_folder(os.path.join(self._folder, expand_path(self._pattern, current_process())))
        self._pass_log = FilePassLog(self._pool, paths, catalog, self.options, is_in_folder=is_in_folder)
        return self._pass_log

    def column(self, meta: int, value: Tensor) -> ColumnWriter:
        """Where values like this one go; metas that differ in nothing but their path share a column."""
        check_copyable(value)
        assert self._catalog is not None and self._pass_log is not None
        record_meta = self._catalog.metas[meta]
        spec = self._catalog.specs[record_meta.spec]
        # What is attached, and the gradients, are kept by RAM beside this sink; a session without RAM refuses them.
        spec = spec.with_changes({"keep_grad": False, "save_gradient": False})
        spec = self._with_file_dtype(spec, value)
        layout = Layout.of(value)
        key = (record_meta.site, record_meta.spec, layout)
        with self._lock:
            column = self._columns.get(key)
            if column is None:
                parts = StagedParts(self._pass_log, self._pool, record_meta.site, record_meta.spec, spec)
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
        if self._pass_log is None:
            raise SessionError("this HDF5Sink belongs to no session yet; open one with Recorder(..., sink=sink)")
        self._pass_log.flush()

    def discard_unused(self) -> None:
        """Remove the file of a session that has ended before anything was recorded.

        It would stand in the way of the next attempt. A recording that is continued stays as it is.
        """
        log, paths = self._pass_log, self._paths
        if log is None or paths is None or self.options.append or not log.is_unused():
            return
        if paths.locked_file() is None:  # nobody has begun another one there
            for file in paths.files():
                os.unlink(file)

    def statistics(self) -> dict[str, int | float]:
        """How much is safe, how much waits to be written, and how long the loop had to wait for the disk.

        ``passes_flushed`` and ``records_flushed`` are in the file. ``bytes_waiting`` are in full blocks that are not;
        ``most_bytes_waiting`` were at worst. ``bytes_written`` were written in full blocks. The loop waited ``waits``
        times, ``seconds_waited`` together.
        """
        pool, writer = self._pool, self._pass_log.writer if self._pass_log is not None else None
        return {
            "passes_flushed": writer.passes_flushed if writer else 0,
            "records_flushed": writer.records_flushed if writer else 0,
            "bytes_waiting": pool.queued,
            "most_bytes_waiting": pool.most_queued,
            "bytes_written": pool.written_bytes,
            "waits": pool.n_waits,
            "seconds_waited": pool.seconds_waited,
        }

    def _paths_of_process(self) -> Paths:
        """The paths in the folder in which the sink was made, wherever the process goes meanwhile."""
        process = current_process(self.options.role)
        path = os.path.join(self._folder, expand_path(self._pattern, process))
        if not is_folder(path):
            return Paths(path)
        try:
            os.makedirs(path, exist_ok=True)
        except FileExistsError as error:
            raise RecordingFileError(
                f"the folder {path!r} can't be made, because there is a file of that name; give another path"
            ) from error
        except OSError as error:
            raise RecordingFileError(f"the folder {path!r} can't be made: {os_message(error)}") from error
        return Paths(os.path.join(path, name_in_folder(process)))

    def _check_folder_options(self) -> None:
        for name in ("overwrite", "append"):
            if getattr(self.options, name):
                raise OptionError(
                    f"HDF5Sink({self._pattern!r}, {name}=True): in a folder each recorder writes a file of its own "
                    "beside those that are there; give the path of a file, or another folder"
                )

    def _with_file_dtype(self, spec: CaptureSpec, value: Tensor) -> CaptureSpec:
        """The spec with the dtype that this file has for floating values, where it names none."""
        if self.options.dtype is None or spec.dtype is not None or not value.is_floating_point():
            return spec
        return spec.with_changes({"dtype": self.options.dtype})


class StagedParts:
    """Stages what a spec makes of each value; itself a column where the spec has a transform."""

    def __init__(self, pass_log: FilePassLog, pool: Pool, site: int, spec_number: int, spec: CaptureSpec) -> None:
        self._pass_log = pass_log
        self._pool = pool
        self._site = site
        self._spec_number = spec_number
        self._spec = spec
        self._lock = threading.Lock()
        self._stages: dict[tuple[tuple[Part, Layout], ...], Stage] = {}

    def append(self, value: Tensor) -> int:
        """Copy what the spec makes of a value; its row."""
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
            with self._pool.unless_forked(self._lock):
                stage = self._stages.get(key)
                if stage is None:
                    stage = self._stages[key] = self._new_stage(layouts)
        return stage

    def _new_stage(self, layouts: Mapping[Part, Layout]) -> Stage:
        on_host = self._spec.with_changes({"device": "cpu"})
        makers = [RowMaker(layout, on_host) for layout in layouts.values()]
        infos = [
            DataInfo(
                name=f"data/{self._pass_log.site_name(self._site)}",
                part=part,
                shape=maker.shape,
                dtype=dtype_name(maker.dtype),
                site=self._site,
                spec=self._spec_number,
            )
            for part, maker in zip(layouts, makers, strict=True)
        ]
        return Stage(self._pool, list(layouts), makers, self._pass_log.register(infos))
