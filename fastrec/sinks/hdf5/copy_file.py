"""One finished file of everything that a source has, whether it reads RAM, files or several recordings.

    write_source(source, "copy.h5", CopyOptions(identity, facts, begun, compression="zstd"))

What belongs together is sorted together: each (site, spec, shape, dtype) becomes one data set, its rows in the order of
the records. The values are read, cast and written piece by piece while the file is made, so a copy takes little memory,
however large the recording is. Every piece is checksummed as it goes by.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec._errors import FastrecError, OptionError, RecordingExistsError, RecordingFileError
from fastrec.events.capture import kept_dtype
from fastrec.events.context import torch_dtype
from fastrec.events.sites import Catalog
from fastrec.recording._source import Part, PhaseSteps, Source
from fastrec.sinks.hdf5.catalog_log import CatalogLog, log_line
from fastrec.sinks.hdf5.checksums import Counters, check_row, checksum
from fastrec.sinks.hdf5.layout import (
    CHECK_ROW,
    CHECKED_TABLES,
    CHECKS,
    COUNTERS,
    COUNTERS_ROW,
    LOG,
    MARK_ROW,
    MARKS,
    OVERFLOW,
    PART_PREFIXES,
    PASS_ROW,
    PASSES,
    RECORD_ROW,
    RECORDS,
    Addresses,
    Bytes,
    DataInfo,
    Identity,
    Integers,
    Rows,
    dtype_name,
)
from fastrec.sinks.hdf5.paths import Paths, os_message, remove_part, rename_to_free
from fastrec.sinks.hdf5.structure import (
    MAX_DIMENSIONS,
    DatasetSpec,
    Rewriting,
    dataset_name,
    rewrite,
    rows_per_copy,
)
from fastrec.sinks.hdf5.system import check_writable_here

MAX_COMPRESSED_ROW_BYTES = (1 << 32) - 1
"""A chunk of HDF5, here at least one row, is less than 4 GiB."""

Progress = Callable[[int, int], None]
"""Called with the bytes that are done, and with their total."""


class CopyOptions(msgspec.Struct, frozen=True):
    """What a copy says of itself, and how it is stored."""

    identity: Identity
    facts: Mapping[str, Any]
    begun: int
    compression: str | None = None
    dtype: torch.dtype | None = None
    progress: Progress | None = None


def check_free(path: str | os.PathLike[str], allowed: Sequence[str] = ()) -> str:
    """A path at which there is nothing yet, but for some files that may be there."""
    check_writable_here()
    existing = [file for file in Paths(path).files() if file not in allowed]
    if existing:
        raise RecordingExistsError(f"{existing[0]!r} exists; give another path")
    return Paths(path).path


def write_source(
    source: Source, path: str | os.PathLike[str], options: CopyOptions, *, replaces: Sequence[str] = ()
) -> None:
    """Write one file, at a path at which there is nothing yet; it appears there once it is whole.

    ``replaces`` are the files of the same recording that may be there.
    """
    target = check_free(path, replaces)
    copied, rewriting = _CopiedFile(source, options), Rewriting(durable=True, compression=options.compression)
    make_whole(target, lambda part: rewrite(copied.read, options.identity, copied.specs, part, options=rewriting))


def make_whole(target: str, make: Callable[[str], None]) -> None:
    """Let ``make`` write a file under another name; it appears at its path, where nothing may be, once it is whole."""
    part = target + ".part"
    remove_part(part)
    try:
        make(part)
        rename_to_free(part, target)
    except FileExistsError as error:
        raise RecordingExistsError(f"{target!r} appeared meanwhile; give another path") from error
    except FastrecError:
        raise
    except OSError as error:
        raise RecordingFileError(f"{target!r} can't be written: {os_message(error)}") from error
    finally:
        if os.path.lexists(part):
            os.unlink(part)


class _CopiedFile:
    """The data sets of a copy. Their bytes are made when they are read, in the order of ``specs``."""

    def __init__(self, source: Source, options: CopyOptions) -> None:
        self._options = options
        self._done = 0
        self._checks: list[npt.NDArray[np.void]] = []
        self._data: dict[str, tuple[int, CopiedData]] = {}
        self.specs: list[DatasetSpec] = []
        sorted_values = sort_values(source, options.dtype)
        step_rows, marks = sort_steps(source.steps(), len(sorted_values.data))
        infos = []
        data: list[CopiedData] = [*sorted_values.data, *step_rows]
        for number, copied in enumerate(data):
            of = copied.info.site_or_phase(sorted_values.catalog)
            infos.append(msgspec.structs.replace(copied.info, name=self._add(number, copied, of)))
        self._total = sum(len(copied) * copied.info.row_bytes() for _, copied in self._data.values())
        log = b"".join(_log_lines(source, sorted_values.catalog, infos, options.facts))
        self._tables: dict[str, Rows] = {
            PASSES: _pass_rows(source),
            RECORDS: sorted_values.records,
            MARKS: marks,
            LOG: np.frombuffer(log, np.uint8),
            COUNTERS: _counter_rows(source, options),
            OVERFLOW: np.empty(0, np.uint8),
        }
        for name, rows in self._tables.items():
            self.specs.append(DatasetSpec(name, "uint8" if rows.dtype == np.uint8 else rows.dtype, (), len(rows)))
        # The checksums come last, when everything that they are of was read.
        checked = [spec for spec in self.specs if spec.name in self._data or spec.name in CHECKED_TABLES]
        n_checks = sum(-(-spec.rows // rows_per_copy(spec)) for spec in checked)
        self.specs.append(DatasetSpec(CHECKS, CHECK_ROW, (), n_checks))

    def read(self, name: str, first: int, count: int) -> Bytes:
        """Rows of a data set, as bytes."""
        if name == CHECKS:
            return np.concatenate(self._checks)[first : first + count].view(np.uint8)
        if name in self._data:
            number, copied = self._data[name]
            rows = copied.read(first, count)
            self._done += rows.size
            if self._options.progress is not None:
                self._options.progress(self._done, self._total)
        else:
            rows = self._tables[name][first : first + count].view(np.uint8)
            if name not in CHECKED_TABLES:
                return rows
            number = CHECKED_TABLES[name]
        self._checks.append(check_row(number, first, count, checksum(rows)))
        return rows

    def _add(self, number: int, copied: CopiedData, of: str) -> str:
        """Add the data set of some data of a site or phase; its name."""
        info, row_bytes = copied.info, copied.info.row_bytes()
        if not row_bytes:
            return OVERFLOW  # values without elements take no room anywhere
        if len(info.shape) > MAX_DIMENSIONS:
            raise OptionError(f"{of!r} has values of {len(info.shape)} dimensions; HDF5 has at most {MAX_DIMENSIONS}")
        if self._options.compression is not None and row_bytes >= MAX_COMPRESSED_ROW_BYTES:
            raise OptionError(f"{of!r} has values of 4 GiB or more, which HDF5 can't compress; leave compression out")
        name = dataset_name("steps" if info.part == "step" else "data", of, self._data)
        self.specs.append(DatasetSpec.of_data(name, info, number, of, len(copied)))
        self._data[name] = number, copied
        return name


def _pass_rows(source: Source) -> Rows:
    passes = source.passes()
    rows = np.zeros(len(passes), PASS_ROW)
    for name in passes.dtype.names or ():
        rows[name] = passes[name]
    rows["ok"] = 1
    return rows


def _counter_rows(source: Source, options: CopyOptions) -> Rows:
    n_empty = source.n_passes() - len(source.passes())
    counters = Counters(n_empty, options.begun, closed=True)
    return np.concatenate([counters.row(1).view(COUNTERS_ROW), np.zeros(1, COUNTERS_ROW)])


def _log_lines(
    source: Source, catalog: Catalog, infos: Sequence[DataInfo], facts: Mapping[str, Any]
) -> Iterator[bytes]:
    yield log_line("session", 0, facts)
    yield from CatalogLog(catalog).lines()
    for number, origin in enumerate(catalog.origins):
        yield log_line("origin", number, origin)
    for number, info in enumerate(infos):
        yield log_line("data", number, info)
    for index in source.passes()["pass_index"].tolist():
        sample = source.sample_id(index)
        if sample is not None:
            yield log_line("sample", index, sample)
    for index, reason in catalog.halted.items():
        yield log_line("halted", index, reason)
    for steps in source.steps():
        if steps.starts:
            yield log_line("starts", steps.phase, steps.starts)


class CopiedData(Protocol):
    """Rows of one data set of a copy, made when they are read."""

    info: DataInfo

    def __len__(self) -> int: ...

    def read(self, first: int, count: int) -> Bytes:
        """Rows, as bytes."""


class CopiedValues:
    """Values of one site, spec, shape and dtype, of the records at some positions of the source."""

    def __init__(self, source: Source, part: Part, info: DataInfo, positions: Integers) -> None:
        self.info = info
        self._source = source
        self._part = part
        self._dtype: torch.dtype = getattr(torch, info.dtype)
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, first: int, count: int) -> Bytes:
        """Rows, as bytes."""
        records = self._source.records()[self._positions[first : first + count]]
        pieces = self._source.values(records["meta"].astype(np.int64), records["row"], self._part)
        return np.concatenate([_bytes_of(piece.to(self._dtype)) for piece in pieces])


class CopiedSteps:
    """Marked steps of one phase that have the same columns."""

    def __init__(self, info: DataInfo, rows: Rows) -> None:
        self.info = info
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, first: int, count: int) -> Bytes:
        """Rows, as bytes."""
        return self._rows[first : first + count].view(np.uint8)


class SortedValues(msgspec.Struct):
    """The data sets of values by number, one row per record that says where its value is, and the catalog of both."""

    catalog: Catalog
    data: list[CopiedValues]
    records: Rows


def sort_values(source: Source, dtype: torch.dtype | None) -> SortedValues:
    """Sort values into data sets; floating ones are cast, where a dtype is given."""
    catalog, source_records = cast_catalog(source.catalog, dtype), source.records()
    records = np.zeros(len(source_records), RECORD_ROW)
    records["variant"], records["time"] = source_records["meta"], source_records["time"]
    data: list[CopiedValues] = []
    site_and_spec = np.array([(meta.site, meta.spec) for meta in catalog.metas.items], np.int64).reshape(-1, 2)
    for part, prefix in PART_PREFIXES.items():
        records[prefix + "data"] = -1
        positions = records_with_part(catalog, source_records, part)
        layout_of_each, layouts = source.layouts(source_records["row"][positions], part)
        keys = np.column_stack([site_and_spec[source_records["meta"][positions]], layout_of_each])
        different_keys, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        for i in np.argsort(first).tolist():  # numbered in the order in which they first appeared
            site, spec, layout = different_keys[i].tolist()
            of_key = positions[which.reshape(-1) == i]
            shape, value_dtype = layouts[layout]
            stored_dtype = dtype if dtype is not None and value_dtype.is_floating_point else value_dtype
            info = DataInfo("", part, tuple(shape), dtype_name(stored_dtype), site=site, spec=spec)
            has_bytes = stored_dtype.itemsize * math.prod(shape) > 0
            rows = np.arange(len(of_key)) if has_bytes else np.zeros(len(of_key), np.int64)
            records[prefix + "data"][of_key] = len(data)
            records[prefix + "row"][of_key] = Addresses.of(rows, in_overflow=not has_bytes).encoded
            data.append(CopiedValues(source, part, info, of_key))
    return SortedValues(catalog, data, records)


def records_with_part(catalog: Catalog, records: Rows, part: Part) -> Integers:
    """The positions of the records that have an activation, or a transformed one."""
    metas = np.unique(records["meta"]).tolist()
    specs = {meta: catalog.specs[catalog.metas[meta].spec] for meta in metas}
    kept = [
        meta for meta, spec in specs.items() if (spec.save_raw if part == "activation" else spec.transform is not None)
    ]
    return np.flatnonzero((records["row"] >= 0) & np.isin(records["meta"], kept))


def cast_catalog(catalog: Catalog, dtype: torch.dtype | None) -> Catalog:
    """The catalog that says what values are once floating ones were cast."""
    cast = Catalog(catalog.header)
    for name in ("sites", "entries", "phases", "specs"):
        for item in getattr(catalog, name).items:
            getattr(cast, name).append(item)
    for meta in catalog.metas.items:
        spec = catalog.specs[meta.spec]
        if dtype is not None and kept_dtype(spec, torch_dtype(meta.dtype)).is_floating_point:
            meta = msgspec.structs.replace(meta, spec=cast.specs.add(spec.with_changes({"dtype": dtype})))
        cast.metas.append(meta)
    cast.halted, cast.failures, cast.origins = catalog.halted, catalog.failures, catalog.origins
    return cast


_ORDERED_MARK_ROW = np.dtype([*MARK_ROW.descr, ("order", "<i8")])


def sort_steps(steps: Sequence[PhaseSteps], first_number: int) -> tuple[list[CopiedSteps], Rows]:
    """The data sets of steps, numbered from a number on, and one row per mark, in the order of all phases."""
    data: list[CopiedSteps] = []
    marks: list[Rows] = [np.zeros(0, _ORDERED_MARK_ROW)]
    for table in steps:
        for names, positions in _column_patterns(table):
            columns = tuple((name, table.columns[name].dtype.str, table.columns[name].shape[1:]) for name in names)
            info = DataInfo("", "step", (), "", phase=table.phase, columns=columns)
            rows = np.zeros(len(positions), info.step_dtype())
            rows["step"], rows["order"] = table.numbers[positions], table.order[positions]
            for name in names:
                rows[f"column:{name}"] = np.ma.getdata(table.columns[name])[positions]
            of_pattern = np.zeros(len(positions), _ORDERED_MARK_ROW)
            of_pattern["phase"], of_pattern["data"], of_pattern["ok"] = table.phase, first_number + len(data), 1
            of_pattern["row"], of_pattern["order"] = np.arange(len(positions)), table.order[positions]
            marks.append(of_pattern)
            data.append(CopiedSteps(info, rows))
    ordered = np.concatenate(marks)
    ordered = ordered[np.argsort(ordered["order"], kind="stable")]
    mark_rows = np.zeros(len(ordered), MARK_ROW)
    for name in MARK_ROW.names or ():
        mark_rows[name] = ordered[name]
    return data, mark_rows


def _column_patterns(table: PhaseSteps) -> list[tuple[list[str], Integers]]:
    """Which marks were made with which columns."""
    names = list(table.columns)
    present = np.ones((len(table.numbers), len(names)), np.bool_)
    for i, name in enumerate(names):
        mask = np.ma.getmaskarray(table.columns[name])
        present[:, i] = ~mask.reshape(len(mask), -1).all(1) if mask.size else True
    patterns, which = np.unique(present, axis=0, return_inverse=True)
    return [
        ([name for name, is_present in zip(names, pattern, strict=True) if is_present],
         np.flatnonzero(which.reshape(-1) == i))
        for i, pattern in enumerate(patterns)
    ]  # fmt: skip


def _bytes_of(values: Tensor) -> Bytes:
    flat: Bytes = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat
