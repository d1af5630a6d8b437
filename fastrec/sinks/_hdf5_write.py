"""One finished file of all that a source has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from fastrec._errors import OptionError, RecordingExistsError, RecordingFileError
from fastrec.events.sites import Catalog
from fastrec.recording._source import Source
from fastrec.sinks._hdf5_checks import Counters, check_row, checksum
from fastrec.sinks._hdf5_file import Rewriting, Wanted, attribute, name_of, rewrite, stretch_of
from fastrec.sinks._hdf5_layout import (
    CHECK_ROW,
    CHECKED,
    CHECKS,
    COUNTERS,
    COUNTERS_ROW,
    LATE,
    LOG,
    MARKS,
    PASS_ROW,
    PASSES,
    RECORDS,
    Bytes,
    DataInfo,
    Identity,
)
from fastrec.sinks._hdf5_log import CatalogLog, line
from fastrec.sinks._hdf5_paths import Paths, why
from fastrec.sinks._hdf5_sets import DataSet, StepSet, data_sets, step_sets

LARGEST_PACKED = (1 << 32) - 1
MOST_DIMENSIONS = 31
Told = Callable[[int, int], None]


class Writing(msgspec.Struct, frozen=True):
    """What a file says of itself, and how it is stored; ``told`` is called with the bytes done and those there are."""

    identity: Identity
    facts: Mapping[str, Any]
    begun: int
    compression: str | None = None
    dtype: torch.dtype | None = None
    told: Told | None = None


def check_free(path: str | os.PathLike[str]) -> str:
    """A path where nothing is yet."""
    there = Paths(path).files()
    if there:
        raise RecordingExistsError(f"{there[0]!r} exists; give another path")
    return Paths(path).path


def write_source(source: Source, path: str | os.PathLike[str], writing: Writing) -> None:
    """Write one file, at a path where nothing is yet; it appears there once it is whole."""
    target = check_free(path)
    content, part = _Content(source, writing), target + ".part"
    try:
        options = Rewriting(durable=True, compression=writing.compression)
        rewrite(content.read, writing.identity, content.wanted, part, options=options)
        os.replace(part, target)
    except OSError as error:
        if isinstance(error, RecordingFileError):
            raise
        raise RecordingFileError(f"{target!r} can't be written: {why(error)}") from error
    finally:
        if os.path.exists(part):
            os.unlink(part)


class _Content:
    """All data sets of a file, whose bytes are made when they are read; checksums are of what was read."""

    def __init__(self, source: Source, writing: Writing) -> None:
        self._told = writing.told or (lambda done, total: None)
        self._done = 0
        data = data_sets(source, writing.dtype)
        steps, marks = step_sets(source.steps(), len(data.sets))
        self._sets: dict[str, tuple[int, DataSet | StepSet]] = {}
        self.wanted: list[Wanted] = []
        infos = []
        both: list[DataSet | StepSet] = [*data.sets, *steps]
        for number, one in enumerate(both):
            of = _of(one.info, data.catalog)
            infos.append(msgspec.structs.replace(one.info, name=self._add(number, one, of, writing)))
        self._total = sum(len(one) * one.row_bytes for _, one in self._sets.values())
        log = b"".join(_log(source, data.catalog, infos, writing.facts))
        self._tables: dict[str, npt.NDArray[Any]] = {
            PASSES: _pass_rows(source),
            RECORDS: data.records,
            MARKS: marks,
            LOG: np.frombuffer(log, np.uint8),
            COUNTERS: _counter_rows(source, writing),
            LATE: np.empty(0, np.uint8),
        }
        for name, rows in self._tables.items():
            self.wanted.append(Wanted(name, "uint8" if rows.dtype == np.uint8 else rows.dtype, (), len(rows)))
        # The checksums are written last, when all that they are of was read.
        checked = [one for one in self.wanted if one.name in self._sets or one.name in CHECKED]
        self.wanted.append(Wanted(CHECKS, CHECK_ROW, (), sum(-(-one.rows // stretch_of(one)) for one in checked)))
        self._checks: list[npt.NDArray[np.void]] = []

    def read(self, name: str, first: int, count: int) -> Bytes:
        """Rows of a data set, as bytes."""
        if name == CHECKS:
            return np.concatenate(self._checks)[first : first + count].view(np.uint8)
        if name in self._sets:
            number, one = self._sets[name]
            rows = one.read(first, count)
            self._done += rows.size
            self._told(self._done, self._total)
        else:
            rows = self._tables[name][first : first + count].view(np.uint8)
            if name not in CHECKED:
                return rows
            number = CHECKED[name]
        self._checks.append(check_row(number, first, count, checksum(rows)))
        return rows

    def _add(self, number: int, one: DataSet | StepSet, of: str, writing: Writing) -> str:
        """Want a data set; its name."""
        if not one.row_bytes:
            return LATE
        if len(one.shape) > MOST_DIMENSIONS:
            raise OptionError(f"{of!r} has values of {len(one.shape)} dimensions; HDF5 has at most {MOST_DIMENSIONS}")
        if writing.compression is not None and one.row_bytes >= LARGEST_PACKED:
            raise OptionError(f"{of!r} has values of 4 GiB and more, which HDF5 can't compress; leave compression out")
        name = name_of("steps" if one.info.part == "step" else "data", of, self._sets)
        told = {"number": str(number), "of": attribute(of), "part": one.info.part, "torch_dtype": one.info.dtype}
        self.wanted.append(Wanted(name, one.dtype, one.shape, len(one), told))
        self._sets[name] = number, one
        return name


def _of(info: DataInfo, catalog: Catalog) -> str:
    return catalog.phases[info.phase] if info.part == "step" else catalog.sites[info.site].name


def _pass_rows(source: Source) -> npt.NDArray[Any]:
    given = source.passes()
    rows = np.zeros(len(given), PASS_ROW)
    for name in given.dtype.names or ():
        rows[name] = given[name]
    rows["ok"] = 1
    return rows


def _counter_rows(source: Source, writing: Writing) -> npt.NDArray[Any]:
    empty = source.n_passes() - len(source.passes())
    counters = Counters(empty, writing.begun, closed=True)
    return np.concatenate([counters.row(1).view(COUNTERS_ROW), np.zeros(1, COUNTERS_ROW)])


def _log(source: Source, catalog: Catalog, infos: Sequence[DataInfo], facts: Mapping[str, Any]) -> Iterator[bytes]:
    yield line("session", 0, facts)
    yield from CatalogLog(catalog).lines()
    for number, origin in enumerate(catalog.origins):
        yield line("origin", number, origin)
    for number, info in enumerate(infos):
        yield line("data", number, info)
    for index in source.passes()["pass_index"].tolist():
        sample = source.sample_id(index)
        if sample is not None:
            yield line("sample", index, sample)
    for index, reason in catalog.halted.items():
        yield line("halted", index, reason)
    for steps in source.steps():
        if steps.starts:
            yield line("starts", steps.phase, steps.starts)
