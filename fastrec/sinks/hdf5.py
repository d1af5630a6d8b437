"""Records in HDF5 files, written while the loop runs."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec._capture import CaptureSpec
from fastrec._catalog import Catalog
from fastrec._contracts import Column, Ledger, Part
from fastrec._copying import Layout, RowMaker, check_copyable, parts_of
from fastrec._errors import GradientError, OptionError, SessionError, StepError
from fastrec._sites import PassInfo
from fastrec.sinks._hdf5_layout import DataInfo
from fastrec.sinks._hdf5_paths import Paths
from fastrec.sinks._hdf5_staging import Pool, Stage, StagedCopier


class HDF5Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a file is written; ``HDF5Sink`` describes each option."""

    block_bytes: int = 1 << 20
    queue_bytes: int = 64 << 20
    segment_bytes: int = 1 << 30
    flush_seconds: float = 1.0
    durable: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least in (("block_bytes", 1), ("queue_bytes", 1), ("segment_bytes", 1 << 20)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise OptionError(f"HDF5Sink({name}={value!r}): give a whole number of bytes from {least} up")
        for name in ("durable", "overwrite"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"HDF5Sink({name}={getattr(self, name)!r}): give True or False")
        seconds = self.flush_seconds
        if type(seconds) not in (int, float) or not 0 < seconds < 1e6:
            raise OptionError(f"HDF5Sink(flush_seconds={seconds!r}): give a number of seconds above 0")

    def room(self) -> int:
        """The bytes that one file has room for, within the limit that this process has for the size of a file."""
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return self.segment_bytes if limit < 0 else max(1 << 16, min(self.segment_bytes, limit // 4))


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
        path: a path that ends in .h5 or .hdf5. A recording that is longer than one file has room for is written to
            run.00000.h5, run.00001.h5 and so on; ``fastrec.load("run.h5")`` finds them.
        block_bytes: how many bytes of one site are handed over at once.
        queue_bytes: how many bytes may wait to be written before the loop waits.
        segment_bytes: how many bytes of values one file has room for.
        flush_seconds: a pass that ended so long ago is safe if the process is killed.
        durable: flushing waits until the disk has it, so that it is safe if the machine loses power.
        overwrite: remove an earlier recording of the same name, instead of refusing to write over it.

    Raises OptionError for options that do not fit. When the session opens: RecordingExistsError where there is a
    recording, RecordingFileError where none can be written. What stops the writer (a full disk) is raised as a
    RecordingFileError by the next pass, step, flush or at the end of the block; what was flushed stays readable.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        self._paths = Paths(path)
        try:
            self.options = HDF5Options(**options)
        except TypeError:
            known = ", ".join(HDF5Options.__struct_fields__)
            raise OptionError(f"HDF5Sink(..., {', '.join(options)}): the options are {known}") from None
        self._pool = Pool(self.options.block_bytes, self.options.queue_bytes)
        self._columns: dict[tuple[Any, ...], Column] = {}
        self._lock = threading.Lock()
        self._ledger: FileLedger | None = None
        self._catalog: Catalog | None = None

    @property
    def path(self) -> str:
        """The path to load."""
        return self._paths.path

    def open(self, catalog: Catalog) -> Ledger:
        """A session begins."""
        if self._ledger is not None:
            raise SessionError("this HDF5Sink already belongs to a session; give each recorder a sink of its own")
        self._paths.claim(overwrite=self.options.overwrite)
        self._catalog = catalog
        self._ledger = FileLedger(self._pool, self._paths, catalog, self.options)
        return self._ledger

    def column(self, variant: int, value: Tensor) -> Column:
        """Where values like this one go; variants that differ in nothing but their path share a column."""
        check_copyable(value)
        assert self._catalog is not None and self._ledger is not None
        found = self._catalog.variants[variant]
        spec = self._catalog.specs[found.spec]
        if spec.keep_grad or spec.save_gradient:
            raise GradientError(
                "gradients can't be kept by a file; add RAM, sink=[RAMSink(), ...], or leave keep_grad and "
                "save_gradient out"
            )
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
        return column

    def flush(self) -> None:
        """Return once every pass that ended is in the file, and safe if this process is killed."""
        if self._ledger is None:
            raise SessionError("this HDF5Sink belongs to no session yet; open one with Recorder(..., sink=sink)")
        self._ledger.flush()

    def statistics(self) -> dict[str, int]:
        """How many passes are safe, bytes that wait to be written, and how often the loop waited for the disk."""
        passes = self._ledger.writer.passes_flushed if self._ledger is not None else 0
        return {"passes_flushed": passes, "bytes_waiting": self._pool.queued, "waits": self._pool.waited}


class StagedParts:
    """Stages what a spec makes of each value; also a column itself, for transforms."""

    def __init__(self, ledger: FileLedger, pool: Pool, site: int, number: int, spec: CaptureSpec) -> None:
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
            with self._lock:
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


class FileLedger:
    """Takes down passes and steps for the writer."""

    def __init__(self, pool: Pool, paths: Paths, catalog: Catalog, options: HDF5Options) -> None:
        # h5py takes longer to import than the rest of fastrec, and who records into RAM needs none of it.
        from fastrec.sinks._hdf5_writer import MOST_ENDED, Writer

        self._most = MOST_ENDED
        self._pool = pool
        self._catalog = catalog
        self._lock = threading.Lock()
        self._marks = 0
        self._shapes: dict[tuple[int, str], tuple[int, ...]] = {}
        self._stages: dict[tuple[Any, ...], tuple[Stage, np.dtype[Any]]] = {}
        self.writer = Writer(pool, paths, catalog, options)

    def commit(
        self, info: PassInfo, variants: Sequence[int], rows: Sequence[int], times: Sequence[float]
    ) -> None:
        """A pass ended: its records in event order, times on the clock of ``info.started``."""
        if self._pool.error is not None:
            self._pool.check()
        self.writer.ended.append((info, variants, rows, times))
        if len(self.writer.ended) >= self._most:
            self.writer.wake()

    def mark(self, phase: int, step: int, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """A step was marked."""
        self._pool.check()
        for name, value in columns.items():
            known = self._shapes.setdefault((phase, name), value.shape)
            if known != value.shape:
                raise StepError(
                    f"the step column {name!r} has shape {value.shape} now and had {known} before; "
                    "give it one shape within a phase, and name other stretches of the run with rec.phase(...)"
                )
        with self._lock:
            stage, dtype = self._stage(phase, columns)
            row = np.zeros(1, dtype)
            row["step"], row["order"] = step, self._marks
            for name, value in columns.items():
                row[f"column:{name}"] = value
            self._marks += 1
            self.writer.marks.append((phase, stage.put([torch.from_numpy(row.view(np.uint8))])))

    def flush(self) -> None:
        """Everything so far reaches the file."""
        self._pool.check()
        self.writer.flush()

    def close(self) -> None:
        """The session ended: the file is finished."""
        told = self._pool.told
        self.writer.close()
        if not told:
            self._pool.check()

    def site_name(self, site: int) -> str:
        """The name of a site."""
        return self._catalog.sites[site].name

    def register(self, infos: Sequence[DataInfo]) -> list[int]:
        """Numbers for data that was not known before."""
        with self._pool.changed:
            first = len(self.writer.infos)
            self.writer.infos += infos
        return list(range(first, first + len(infos)))

    def _stage(self, phase: int, columns: Mapping[str, npt.NDArray[Any]]) -> tuple[Stage, np.dtype[Any]]:
        key = (phase, *((name, value.dtype, value.shape) for name, value in columns.items()))
        found = self._stages.get(key)
        if found is None:
            described = tuple((name, value.dtype.str, value.shape) for name, value in columns.items())
            name = f"steps/{self._catalog.phases[phase]}"
            info = DataInfo(name=name, part="step", shape=(), dtype="", phase=phase, columns=described)
            dtype = info.step_dtype()
            layout = Layout((dtype.itemsize,), torch.uint8, torch.device("cpu"))
            stage = Stage(self._pool, ["step"], [RowMaker(layout, CaptureSpec())], self.register([info]))
            found = self._stages[key] = stage, dtype
        return found
