"""What a source has, sorted into the data sets of one file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec.events.capture import kept_dtype
from fastrec.events.context import torch_dtype
from fastrec.events.sites import Catalog
from fastrec.recording._source import Part, PhaseSteps, Source
from fastrec.sinks._hdf5_layout import MARK_ROW, RECORD_ROW, Bytes, DataInfo
from fastrec.sinks._hdf5_source import PREFIX
from fastrec.sinks._kept import having

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
        pieces = self._source.values(records["variant"].astype(np.int64), records["row"], self._part)
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
    records["variant"], records["time"] = given["variant"], given["time"]
    sets: list[DataSet] = []
    of_variant = np.array([(v.site, v.spec) for v in catalog.variants.items], np.int64).reshape(-1, 2)
    for part, prefix in PREFIX.items():
        records[prefix + "data"] = -1
        at = having(catalog, given, part)
        which, layouts = source.layouts(given["row"][at], part)
        keys = np.column_stack([of_variant[given["variant"][at]], which])
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
    for variant in given.variants.items:
        spec = given.specs[variant.spec]
        if dtype is not None and kept_dtype(spec, torch_dtype(variant.dtype)).is_floating_point:
            variant = msgspec.structs.replace(variant, spec=made.specs.add(spec.with_changes({"dtype": dtype})))
        made.variants.append(variant)
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
