"""What a session in a file notes beside the values: passes, steps, and which data there is.

It stands between the recording loop and the writer: the loop calls it, the writer's thread takes what it collected.
"""

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
    """Notes passes and steps for the writer."""

    def __init__(
        self, pool: Pool, paths: Paths, catalog: Catalog, options: HDF5Options, *, is_in_folder: bool = False
    ) -> None:
        # h5py takes longer to import than the rest of fastrec, and who records into RAM needs none of it.
        from fastrec.sinks.hdf5.writer import Writer

        self._flush_rows = options.flush_rows or sys.maxsize
        self._rows_since_wake = 0
        self._pool = pool
        self._folder_path = paths.path if is_in_folder else None
        self._catalog = catalog
        self._lock = threading.Lock()
        self._n_marks = 0
        self._shapes: dict[tuple[int, str], tuple[int, ...]] = {}
        self._stages: dict[tuple[Any, ...], tuple[Stage, np.dtype[Any]]] = {}
        self.writer = Writer(pool, paths, catalog, options)

    def commit(self, info: PassInfo, metas: Sequence[int], rows: Sequence[int], times: Sequence[float]) -> None:
        """A pass ended: its records in event order, times on the clock of ``info.started``."""
        pool, writer = self._pool, self.writer
        if pool.error is not None:
            pool.check()
        if not rows and info.outcome == "ok":
            # Only counted: a run without end in which a predicate keeps nothing must not fill the disk with passes.
            with self._lock:
                writer.counters.empty += 1
                writer.counters.begun = max(writer.counters.begun, info.index + 1)
            return
        many_wait = writer.ended.add((info, metas, rows, times))
        self._rows_since_wake += len(rows)
        if many_wait or self._rows_since_wake >= self._flush_rows:
            self._rows_since_wake = 0
            writer.wake()

    def mark(self, phase: int, step: int, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """A step was marked."""
        self._pool.check_not_forked()
        self._pool.check()
        for name, value in columns.items():
            shape = self._shapes.get((phase, name))
            if shape is None:
                shape = self._first_shape(phase, name, value.shape)
            if shape != value.shape:
                raise StepError(
                    f"the step column {name!r} has shape {value.shape} now and had {shape} before; "
                    "give it one shape within a phase, and name other stretches of the run with rec.phase(...)"
                )
        with self._lock:
            stage, dtype = self._stage(phase, columns)
            row = np.zeros(1, dtype)
            row["step"], row["order"] = step, self._n_marks
            for name, value in columns.items():
                row[f"column:{name}"] = value
            self._n_marks += 1
            self.writer.marks.append((phase, stage.put([torch.from_numpy(row.view(np.uint8))])))

    def flush(self) -> None:
        """Return once everything so far is in the file."""
        self._pool.check_not_forked()
        self._pool.check()
        self.writer.flush()

    def close(self) -> None:
        """The session ended: finish the file. What stopped the writer is raised unless the user has seen it."""
        self._pool.check_not_forked()
        was_raised = self._pool.error_was_raised
        self.writer.close()
        if not was_raised:
            self._pool.check()
        if self._folder_path is not None and self._pool.error is None:
            from fastrec.sinks.hdf5.folder_index import note_closed

            note_closed(self._folder_path)

    def is_unused(self) -> bool:
        """Whether no pass ended and no step was marked; asked when it is closed."""
        return not (self._n_marks or self.writer.passes_flushed or self._pool.error)

    def site_name(self, site: int) -> str:
        """The name of a site."""
        return self._catalog.sites[site].name

    def register(self, infos: Sequence[DataInfo]) -> list[int]:
        """Numbers for new data."""
        with self._pool.unless_forked(self._pool.changed):
            first = len(self.writer.infos)
            self.writer.infos += infos
        return list(range(first, first + len(infos)))

    def _first_shape(self, phase: int, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a step column has to have: that of an earlier session, or what it has now."""
        earlier = self.writer.earlier_shapes.get((self._catalog.phases[phase], name), shape)
        return self._shapes.setdefault((phase, name), earlier)

    def _stage(self, phase: int, columns: Mapping[str, npt.NDArray[Any]]) -> tuple[Stage, np.dtype[Any]]:
        """Where the rows of steps with these columns are staged, as bytes, and their dtype."""
        key = (phase, *((name, value.dtype, value.shape) for name, value in columns.items()))
        if key not in self._stages:
            described = tuple((name, value.dtype.str, value.shape) for name, value in columns.items())
            name = f"steps/{self._catalog.phases[phase]}"
            info = DataInfo(name=name, part="step", shape=(), dtype="", phase=phase, columns=described)
            dtype = info.step_dtype()
            layout = Layout((dtype.itemsize,), torch.uint8, torch.device("cpu"))
            stage = Stage(self._pool, ["step"], [RowMaker(layout, CaptureSpec())], self.register([info]))
            self._stages[key] = stage, dtype
        return self._stages[key]
