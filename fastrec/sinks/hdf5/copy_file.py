"""One finished file of all that a source has."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec._errors import OptionError, RecordingExistsError, RecordingFileError
from fastrec.events.capture import kept_dtype
from fastrec.events.context import torch_dtype
from fastrec.events.sites import Catalog
from fastrec.recording._source import Part, PhaseSteps, Source
from fastrec.sinks.hdf5.catalog_log import CatalogLog, line
from fastrec.sinks.hdf5.checksums import Counters, check_row, checksum
from fastrec.sinks.hdf5.layout import (
    CHECK_ROW,
    CHECKED,
    CHECKS,
    COUNTERS,
    COUNTERS_ROW,
    LATE,
    LOG,
    MARK_ROW,
    MARKS,
    PASS_ROW,
    PASSES,
    RECORD_ROW,
    RECORDS,
    Bytes,
    DataInfo,
    Identity,
)
from fastrec.sinks.hdf5.paths import Paths, os_message
from fastrec.sinks.hdf5.source import PREFIX
from fastrec.sinks.hdf5.structure import DatasetSpec, Rewriting, attribute, dataset_name, rewrite, stretch_of

MAX_COMPRESSED = (1 << 32) - 1

MAX_DIMENSIONS = 31

Progress = Callable[[int, int], None]


class Writing(msgspec.Struct, frozen=True):
    """What a file says of itself, and how it is stored; ``progress`` is called with the bytes done and their total."""

    identity: Identity
    facts: Mapping[str, Any]
    begun: int
    compression: str | None = None
    dtype: torch.dtype | None = None
    progress: Progress | None = None


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
        raise RecordingFileError(f"{target!r} can't be written: {os_message(error)}") from error
    finally:
        if os.path.exists(part):
            os.unlink(part)


class _Content:
    """All data sets of a file, whose bytes are made when they are read; checksums are of what was read."""

    def __init__(self, source: Source, writing: Writing) -> None:
        self._progress = writing.progress or (lambda done, total: None)
        self._done = 0
        data = data_sets(source, writing.dtype)
        steps, marks = step_sets(source.steps(), len(data.sets))
        self._sets: dict[str, tuple[int, DataSet | StepSet]] = {}
        self.wanted: list[DatasetSpec] = []
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
            self.wanted.append(DatasetSpec(name, "uint8" if rows.dtype == np.uint8 else rows.dtype, (), len(rows)))
        # The checksums are written last, when all that they are of was read.
        checked = [one for one in self.wanted if one.name in self._sets or one.name in CHECKED]
        self.wanted.append(DatasetSpec(CHECKS, CHECK_ROW, (), sum(-(-one.rows // stretch_of(one)) for one in checked)))
        self._checks: list[npt.NDArray[np.void]] = []

    def read(self, name: str, first: int, count: int) -> Bytes:
        """Rows of a data set, as bytes."""
        if name == CHECKS:
            return np.concatenate(self._checks)[first : first + count].view(np.uint8)
        if name in self._sets:
            number, one = self._sets[name]
            rows = one.read(first, count)
            self._done += rows.size
            self._progress(self._done, self._total)
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
        if len(one.shape) > MAX_DIMENSIONS:
            raise OptionError(f"{of!r} has values of {len(one.shape)} dimensions; HDF5 has at most {MAX_DIMENSIONS}")
        if writing.compression is not None and one.row_bytes >= MAX_COMPRESSED:
            raise OptionError(f"{of!r} has values of 4 GiB and more, which HDF5 can't compress; leave compression out")
        name = dataset_name("steps" if one.info.part == "step" else "data", of, self._sets)
        told = {"number": str(number), "of": attribute(of), "part": one.info.part, "torch_dtype": one.info.dtype}
        self.wanted.append(DatasetSpec(name, one.dtype, one.shape, len(one), told))
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


Integers = npt.NDArray[np.int64]


class DataSet:
    """Values of one site, spec, shape and dtype, read from the source when they are asked for."""

    def __init__(self, source: Source, part: Part, info: DataInfo, at: Integers) -> None:
        self._source = source
        self._part = part
        self._dtype: torch.dtype = getattr(torch, info.dtype)
        self._at = at
        self.info = info
        self.dtype: Any = info.dtype
        self.shape = info.shape
        self.row_bytes = self._dtype.itemsize * math.prod(info.shape)

    def __len__(self) -> int:
        return len(self._at)

    def read(self, first: int, count: int) -> Bytes:
        """Rows, as bytes."""
        records = self._source.records()[self._at[first : first + count]]
        pieces = self._source.values(records["meta"].astype(np.int64), records["row"], self._part)
        return np.concatenate([_bytes_of(piece.to(self._dtype)) for piece in pieces])


class StepSet:
    """Marked steps of one phase that have the same columns."""

    def __init__(self, info: DataInfo, rows: npt.NDArray[Any]) -> None:
        self._rows = rows
        self.info = info
        self.dtype: Any = rows.dtype
        self.shape: tuple[int, ...] = ()
        self.row_bytes = rows.dtype.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, first: int, count: int) -> Bytes:
        """Rows, as bytes."""
        return self._rows[first : first + count].view(np.uint8)


class Sorted(msgspec.Struct):
    """The catalog, with the specs that fit the values, the data sets by number, and one row per record."""

    catalog: Catalog
    sets: list[DataSet]
    records: npt.NDArray[Any]


def data_sets(source: Source, dtype: torch.dtype | None) -> Sorted:
    """Sort values into data sets; floating ones are cast, where a dtype is given."""
    catalog, given = recast(source.catalog, dtype), source.records()
    records = np.zeros(len(given), RECORD_ROW)
    records["variant"], records["time"] = given["meta"], given["time"]
    sets: list[DataSet] = []
    of_meta = np.array([(v.site, v.spec) for v in catalog.metas.items], np.int64).reshape(-1, 2)
    for part, prefix in PREFIX.items():
        records[prefix + "data"] = -1
        at = records_with_part(catalog, given, part)
        which, layouts = source.layouts(given["row"][at], part)
        keys = np.column_stack([of_meta[given["meta"][at]], which])
        found, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        inverse = inverse.reshape(-1)
        for i in np.argsort(first).tolist():
            (site, spec, layout), mine = found[i].tolist(), at[inverse == i]
            shape, kept = layouts[layout]
            cast = dtype if dtype is not None and kept.is_floating_point else kept
            name = str(cast).removeprefix("torch.")
            info = DataInfo(name="", part=part, shape=tuple(shape), dtype=name, site=site, spec=spec)
            records[prefix + "data"][mine] = len(sets)
            sets.append(DataSet(source, part, info, mine))
            records[prefix + "row"][mine] = np.arange(len(mine)) if sets[-1].row_bytes else -1
    return Sorted(catalog, sets, records)


def recast(given: Catalog, dtype: torch.dtype | None) -> Catalog:
    """The catalog that tells what values are once floating ones were cast."""
    made = Catalog(given.header)
    for name in ("sites", "entries", "phases", "specs"):
        for item in getattr(given, name).items:
            getattr(made, name).append(item)
    for meta in given.metas.items:
        spec = given.specs[meta.spec]
        if dtype is not None and kept_dtype(spec, torch_dtype(meta.dtype)).is_floating_point:
            meta = msgspec.structs.replace(meta, spec=made.specs.add(spec.with_changes({"dtype": dtype})))
        made.metas.append(meta)
    made.halted, made.failures, made.origins = given.halted, given.failures, given.origins
    return made


def step_sets(steps: Sequence[PhaseSteps], first: int) -> tuple[list[StepSet], npt.NDArray[Any]]:
    """The data sets of steps, numbered from a number on, and one row per mark in order."""
    sets: list[StepSet] = []
    marks: list[npt.NDArray[Any]] = []
    for table in steps:
        for columns, at in _patterns(table):
            told = tuple((name, table.columns[name].dtype.str, table.columns[name].shape[1:]) for name in columns)
            info = DataInfo(name="", part="step", shape=(), dtype="", phase=table.phase, columns=told)
            rows = np.zeros(len(at), info.step_dtype())
            rows["step"], rows["order"] = table.numbers[at], table.order[at]
            for name in columns:
                rows[f"column:{name}"] = np.ma.getdata(table.columns[name])[at]
            own = np.zeros(len(at), np.dtype([*MARK_ROW.descr, ("order", "<i8")]))
            own["phase"], own["data"], own["row"], own["ok"] = table.phase, first + len(sets), np.arange(len(at)), 1
            own["order"] = table.order[at]
            marks.append(own)
            sets.append(StepSet(info, rows))
    together = np.concatenate(marks) if marks else np.zeros(0, np.dtype([*MARK_ROW.descr, ("order", "<i8")]))
    together = together[np.argsort(together["order"], kind="stable")]
    found = np.zeros(len(together), MARK_ROW)
    for name in MARK_ROW.names or ():
        found[name] = together[name]
    return sets, found


def _patterns(table: PhaseSteps) -> list[tuple[list[str], Integers]]:
    """Which marks were made with which columns."""
    names = list(table.columns)
    given = np.ones((len(table.numbers), len(names)), np.bool_)
    for i, name in enumerate(names):
        mask = np.ma.getmaskarray(table.columns[name])
        given[:, i] = ~mask.reshape(len(mask), -1).all(1) if mask.size else True
    patterns, inverse = np.unique(given, axis=0, return_inverse=True)
    return [
        ([name for name, there in zip(names, pattern, strict=True) if there], np.flatnonzero(inverse.reshape(-1) == i))
        for i, pattern in enumerate(patterns)
    ]


def _bytes_of(values: Tensor) -> Bytes:
    flat: Bytes = values.contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat


def records_with_part(catalog: Catalog, records: npt.NDArray[Any], part: Part) -> npt.NDArray[np.int64]:
    """The positions of the records that have an activation, or a transformed one."""
    metas = np.unique(records["meta"]).tolist()
    specs = {meta: catalog.specs[catalog.metas[meta].spec] for meta in metas}
    kept = [k for k, spec in specs.items() if (spec.save_raw if part == "activation" else spec.transform is not None)]
    return np.flatnonzero((records["row"] >= 0) & np.isin(records["meta"], kept))
