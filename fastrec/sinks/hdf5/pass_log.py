"""What a session in a file takes down beside the values."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastrec._errors import StepError
from fastrec.events.capture import CaptureSpec
from fastrec.events.sites import Catalog, PassInfo
from fastrec.sinks._blocks import Layout, RowMaker
from fastrec.sinks.hdf5.layout import DataInfo
from fastrec.sinks.hdf5.options import HDF5Options
from fastrec.sinks.hdf5.paths import Paths
from fastrec.sinks.hdf5.staging import Pool, Stage


class FilePassLog:
    """Takes down passes and steps for the writer."""

    def __init__(self, pool: Pool, paths: Paths, catalog: Catalog, options: HDF5Options) -> None:
        # h5py takes longer to import than the rest of fastrec, and who records into RAM needs none of it.
        from fastrec.sinks.hdf5.writer import Writer

        self._flush_rows = options.flush_rows or sys.maxsize
        self._unasked = 0
        self._pool = pool
        self._catalog = catalog
        self._lock = threading.Lock()
        self._marks = 0
        self._shapes: dict[tuple[int, str], tuple[int, ...]] = {}
        self._stages: dict[tuple[Any, ...], tuple[Stage, np.dtype[Any]]] = {}
        self.writer = Writer(pool, paths, catalog, options)

    def commit(self, info: PassInfo, metas: Sequence[int], rows: Sequence[int], times: Sequence[float]) -> None:
        """A pass ended: its records in event order, times on the clock of ``info.started``."""
        pool, writer = self._pool, self.writer
        if pool.error is not None:
            pool.check()
        if not rows and info.outcome == "ok":
            # A run without end in which a predicate keeps nothing must not fill the disk with passes.
            with self._lock:
                writer.counters.empty += 1
                writer.counters.begun = max(writer.counters.begun, info.index + 1)
            return
        many = writer.ended.add((info, metas, rows, times))
        self._unasked += len(rows)
        if many or self._unasked >= self._flush_rows:
            self._unasked = 0
            writer.wake()

    def mark(self, phase: int, step: int, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """A step was marked."""
        self._pool.check_is_own()
        self._pool.check()
        for name, value in columns.items():
            known = self._shapes.get((phase, name))
            if known is None:
                known = self._first_shape(phase, name, value.shape)
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
        self._pool.check_is_own()
        self._pool.check()
        self.writer.flush()

    def close(self) -> None:
        """The session ended: the file is finished."""
        self._pool.check_is_own()
        told = self._pool.told
        self.writer.close()
        if not told:
            self._pool.check()

    def site_name(self, site: int) -> str:
        """The name of a site."""
        return self._catalog.sites[site].name

    def register(self, infos: Sequence[DataInfo]) -> list[int]:
        """Numbers for data that was not known before."""
        with self._pool.exclusively(self._pool.changed):
            first = len(self.writer.infos)
            self.writer.infos += infos
        return list(range(first, first + len(infos)))

    def _first_shape(self, phase: int, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a step column: that of a session before this one, or what it has now."""
        before = self.writer.shapes_before.get((self._catalog.phases[phase], name), shape)
        return self._shapes.setdefault((phase, name), before)

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
