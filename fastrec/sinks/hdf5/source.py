"""What files hold up to a moment, to be read."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec._errors import DamagedFileError, RecordingNotFoundError
from fastrec._torch.tensors import outside_torch_modes
from fastrec.events.sites import Origin
from fastrec.recording._source import PASS_DTYPE, RECORD_DTYPE, Part, PhaseSteps
from fastrec.sinks._steps import StepTable
from fastrec.sinks.hdf5.catalog_log import torch_dtype_of
from fastrec.sinks.hdf5.contents import Contents, IncrementalReader, read_contents
from fastrec.sinks.hdf5.layout import LATE, MERGED, SOURCES, Bytes, DataInfo, Identity
from fastrec.sinks.hdf5.merged import MergedSource
from fastrec.sinks.hdf5.paths import Paths
from fastrec.sinks.hdf5.reader import find_files, segment_of
from fastrec.sinks.hdf5.structure import opened_file

Integers = npt.NDArray[np.int64]

PREFIX = {"activation": "", "transformed_activation": "transformed_"}

SPAN = 16 << 20
"""So many bytes are read at once where some of the rows are not asked for."""


class HDF5Source:
    """The passes that were flushed when it was opened; values are read when they are asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._set(os.fspath(path), read_contents(find_files(path)))

    @classmethod
    def of(cls, path: str, contents: Contents) -> HDF5Source:
        """What was read before."""
        source = cls.__new__(cls)
        source._set(path, contents)
        return source

    def _set(self, path: str, contents: Contents) -> None:
        self._path = path
        self._contents = contents
        self._files = contents.files
        self._raw = contents.records
        self.catalog = contents.log.catalog
        self._layouts: dict[tuple[int, int], tuple[tuple[int, ...], torch.dtype, int]] = {}
        self._segments_and_data: dict[str, Integers] = {}
        self._rows_in_data: dict[str, Integers] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Whoever reads it elsewhere opens the files again, and finds there what was read here.
        contents = self._contents
        told = contents.start, contents.tables.counts, contents.n_empty
        return _opened_again, (os.path.abspath(self._path), self._run, *told)

    @property
    def _run(self) -> str:
        """Which recording it is, empty before its first file."""
        return self._files[0].map.identity.run if self._files else ""

    def facts(self) -> dict[str, Any]:
        """What the recorder said of the session."""
        return self._contents.log.facts

    def begun(self) -> int:
        """One more than the highest index of a pass that ended, those that kept nothing included."""
        return self._contents.begun

    def identity(self) -> Identity:
        """What its last file is part of."""
        return list(self._files.values())[-1].map.identity

    def paths(self) -> list[tuple[str, bool]]:
        """The files, and whether each still grows or was left by a process that was killed."""
        return [(file.path, file.growing) for file in self._files.values()]

    def n_passes(self) -> int:
        """How many passes ended, those that kept nothing included."""
        return len(self._contents.passes) + self._contents.n_empty

    def passes(self) -> npt.NDArray[Any]:
        """One row per pass that kept something or ended badly, of ``PASS_DTYPE``, in order of ``pass_index``."""
        return self._sorted[0]

    def records(self) -> npt.NDArray[Any]:
        """One row per record, of ``RECORD_DTYPE``, in order of (pass, event)."""
        return self._sorted[1]

    def steps(self) -> Sequence[PhaseSteps]:
        """The marked steps, of each phase that has some."""
        return self._steps

    def sample_id(self, pass_index: int) -> str | int | None:
        """The sample id that a pass was logged with."""
        return self._contents.log.samples.get(pass_index)

    def value(self, meta: int, row: int, part: Part) -> Tensor | None:
        """One part of a record, None where it has no such part."""
        prefix = PREFIX.get(part)
        if row < 0 or prefix is None or self._raw[prefix + "data"][row] < 0:
            return None
        rows = np.array([row])
        return self._read(rows, prefix, *self._keys(rows, prefix))[0]

    def values(self, metas: Integers, rows: Integers, part: Part) -> Sequence[Tensor]:
        """The values of many records in their order, each with its records in front; as few tensors as possible."""
        keys, inverse = self._kept(rows, part)
        if len({self._layout(key)[:2] for key in keys}) == 1:
            return [self._read(rows, PREFIX[part], keys, inverse)]
        layouts, _ = self.layouts(rows, part)
        edges = [0, *(np.flatnonzero(np.diff(layouts)) + 1).tolist(), len(rows)]
        pieces = [rows[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]
        return [self._read(piece, PREFIX[part], *self._keys(piece, PREFIX[part])) for piece in pieces]

    def layouts(self, rows: Integers, part: Part) -> tuple[Integers, list[tuple[tuple[int, ...], torch.dtype]]]:
        """Which layout the values of records have, and the shape and dtype of each."""
        keys, inverse = self._kept(rows, part)
        numbers: dict[tuple[tuple[int, ...], torch.dtype], int] = {}
        which = [numbers.setdefault(self._layout(key)[:2], len(numbers)) for key in keys]
        return np.array(which, np.int64)[inverse], list(numbers)

    def nbytes(self, metas: Integers, rows: Integers) -> Integers:
        """The bytes that each record's tensors take."""
        total = np.zeros(len(rows), np.int64)
        for prefix in PREFIX.values():
            kept = np.flatnonzero(rows >= 0)
            kept = kept[self._raw[prefix + "data"][rows[kept]] >= 0]
            keys, inverse = self._keys(rows[kept], prefix)
            total[kept] += np.array([self._layout(key)[2] for key in keys], np.int64)[inverse]
        return total

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        raw = self._contents.passes
        raw = raw[(raw["count"] > 0) | (raw["outcome"] != 0)]
        order = np.argsort(raw["pass_index"], kind="stable")
        passes = np.zeros(len(raw), PASS_DTYPE)
        for name in PASS_DTYPE.names or ():
            passes[name] = raw[name][order]
        for numbers in self._contents.sessions.values():
            numbers.before.leave_open(passes)
        count = passes["count"]
        first = np.cumsum(count) - count
        total = int(count.sum())
        if total == len(self._raw) and np.array_equal(passes["first"], first):
            at, raw = np.arange(total), self._raw  # they lie in their order, as they do where one thread records
        else:
            at = np.repeat(passes["first"] - first, count) + np.arange(total)
            raw = self._raw[at]
        passes["first"] = first
        records = np.empty(total, RECORD_DTYPE)
        records["meta"], records["time"], records["row"] = raw["variant"], raw["time"], at
        records["row"][(raw["data"] < 0) & (raw["transformed_data"] < 0)] = -1
        return passes, records

    @cached_property
    def _steps(self) -> list[PhaseSteps]:
        marks = self._contents.marks
        rows, infos = self._step_rows()
        found: list[PhaseSteps] = []
        for phase in dict.fromkeys(marks["phase"].tolist()):
            here = np.flatnonzero(marks["phase"] == phase)
            numbers = set(marks["data"][here].tolist())
            if len(numbers) > 1:
                return self._steps_one_by_one(rows, infos)
            number = numbers.pop()
            own = np.concatenate([rows[key] for key in sorted(rows) if key[1] == number])
            columns = {name: own[f"column:{name}"].copy() for name, _, _ in infos[number].columns}
            found.append(PhaseSteps(phase, own["step"].copy(), own["order"].copy(), columns, {}, self._starts(phase)))
        return found

    def _starts(self, phase: int) -> tuple[int, ...]:
        """With which steps of a phase a session began."""
        return tuple(sorted(self._contents.log.starts.get(phase, ())))

    def _step_rows(self) -> tuple[dict[tuple[int, int], npt.NDArray[Any]], dict[int, DataInfo]]:
        """The rows of all marks in order, by segment and data."""
        marks = self._contents.marks
        rows: dict[tuple[int, int], npt.NDArray[Any]] = {}
        infos: dict[int, DataInfo] = {}
        for segment, number in np.unique(marks[["segment", "data"]]).tolist():
            key = segment, number
            infos[number] = info = self._info(key)
            dtype = info.step_dtype()
            at = marks["row"][(marks["segment"] == segment) & (marks["data"] == number)]
            out = np.empty((len(at), dtype.itemsize), np.uint8)
            self._fill(out, key, info, at)
            rows[key] = out.reshape(-1).view(dtype)
            self._contents.sessions[segment].steps(rows[key], info.phase)
        return rows, infos

    def _steps_one_by_one(
        self, rows: dict[tuple[int, int], npt.NDArray[Any]], infos: dict[int, DataInfo]
    ) -> list[PhaseSteps]:
        """Steps of which some have other columns than others."""
        marks = [(int(row["order"]), key[1], row) for key, own in rows.items() for row in own]
        table = StepTable()
        for _, number, row in sorted(marks, key=lambda mark: mark[0]):
            columns = {name: np.array(row[f"column:{name}"]) for name, _, _ in infos[number].columns}
            table.mark(infos[number].phase, int(row["step"]), columns)
        found = table.read()
        return [msgspec.structs.replace(steps, starts=self._starts(steps.phase)) for steps in found]

    def _keys(self, rows: Integers, prefix: str) -> tuple[list[tuple[int, int]], Integers]:
        """The different (segment, data) of rows, and which of them each row has."""
        together = self._places(prefix).take(rows)
        if not len(together):
            return [], np.zeros(0, np.int64)
        # Records of one site lie in few places, one after the other, most often in one.
        changes = np.flatnonzero(together[1:] != together[:-1]) + 1
        if not len(changes):
            key = int(together[0])
            return [(key >> 32, key & 0xFFFFFFFF)], np.broadcast_to(np.int64(0), len(together))
        edges = np.concatenate(([0], changes, [len(together)]))
        found, inverse = np.unique(together[edges[:-1]], return_inverse=True)
        return [(key >> 32, key & 0xFFFFFFFF) for key in found.tolist()], np.repeat(inverse, np.diff(edges))

    def _kept(self, rows: Integers, part: Part) -> tuple[list[tuple[int, int]], Integers]:
        """The same of rows which all have this part; a KeyError tells the position of the first that has not."""
        prefix = PREFIX.get(part)
        if prefix is None:
            raise KeyError(0)
        keys, inverse = self._keys(rows, prefix) if not len(rows) or rows.min() >= 0 else ([(-1, 0)], rows)
        if keys and min(keys)[0] < 0:
            raise KeyError(int(np.argmax((rows < 0) | (self._places(prefix)[rows] < 0))))
        return keys, inverse

    def _places(self, prefix: str) -> Integers:
        """Segment and data of all records, together in one number each, below 0 where there is no value."""
        found = self._segments_and_data.get(prefix)
        if found is None:
            found = self._raw[prefix + "segment"].astype(np.int64) << 32
            found |= self._raw[prefix + "data"]
            self._segments_and_data[prefix] = found
        return found

    def _rows(self, prefix: str) -> Integers:
        """The row of each record in its data set."""
        found = self._rows_in_data.get(prefix)
        if found is None:
            found = self._rows_in_data[prefix] = np.ascontiguousarray(self._raw[prefix + "row"])
        return found

    def _layout(self, key: tuple[int, int]) -> tuple[tuple[int, ...], torch.dtype, int]:
        """The shape, dtype and bytes of the values in a data set."""
        found = self._layouts.get(key)
        if found is None:
            info = self._info(key)
            dtype = torch_dtype_of(info.dtype)
            found = self._layouts[key] = info.shape, dtype, dtype.itemsize * math.prod(info.shape)
        return found

    def _info(self, key: tuple[int, int]) -> DataInfo:
        if key not in self._contents.log.data or key[0] not in self._files:
            raise DamagedFileError(f"a record lies in data {key[1]} of segment {key[0]}, which is not here")
        return self._contents.log.data[key]

    def _read(self, rows: Integers, prefix: str, keys: list[tuple[int, int]], inverse: Integers) -> Tensor:
        """Values of one layout as one tensor, from the places that they are in."""
        shape, dtype, nbytes = self._layout(keys[0])
        raw = self._rows(prefix).take(rows)
        self._check_size(keys, raw, inverse, nbytes)
        out = np.empty((len(rows), nbytes), np.uint8)
        if nbytes:
            changes = np.flatnonzero(np.diff(inverse)) + 1 if len(keys) > 1 else np.empty(0, np.int64)
            edges = [0, *changes.tolist(), len(rows)]
            for start, stop in zip(edges, edges[1:], strict=False):
                key = keys[inverse[start]]
                self._fill(out[start:stop], key, self._info(key), raw[start:stop])
        with outside_torch_modes():
            if not nbytes:
                return torch.empty((len(rows), *shape), dtype=dtype)
            return torch.from_numpy(out.reshape(-1)).view(dtype).reshape(len(rows), *shape)

    def _check_size(self, keys: list[tuple[int, int]], raw: Integers, inverse: Integers, nbytes: int) -> None:
        """Before memory is taken for values: the file has to be as large as they are said to be."""
        for i, key in enumerate(keys):
            name = self._info(key).name
            extent = self._files[key[0]].map.sets.get(name)
            in_set = (raw if len(keys) == 1 else raw[inverse == i]) >= 0
            if extent is None or (in_set.any() and extent.row_bytes != nbytes):
                raise DamagedFileError(f"the data set {name!r} does not hold values of {nbytes} bytes")
            late = self._files[key[0]].map.sets.get(LATE)
            if not in_set.all() and nbytes and (late is None or late.rows < nbytes):
                raise DamagedFileError(f"the data set {LATE!r} does not hold values of {nbytes} bytes")

    def _fill(self, out: Bytes, key: tuple[int, int], info: DataInfo, raw: Integers) -> None:
        """Read rows of one data set; those before 0 are bytes of the late ones."""
        file, nbytes = self._files[key[0]], out.shape[1]
        most = max(1, SPAN // nbytes)
        for start in range(0, len(raw), most):
            part, into = raw[start : start + most], out[start : start + most]
            low, high = int(part.min()), int(part.max())
            flat = into.reshape(-1)
            if low < 0:
                if len(part) == 1 or (np.diff(part) == -nbytes).all():
                    file.rows(LATE, -1 - int(part[0]), flat.size, flat)
                    continue
            elif high - low + 1 == len(part) and (part[1:] > part[:-1]).all():
                file.rows(info.name, low, len(part), flat)
                continue
            elif high - low < 4 * len(part):
                into[:] = file.rows(info.name, low, high - low + 1).reshape(-1, nbytes)[part - low]
                continue
            for row, one in zip(part.tolist(), into, strict=True):
                if row < 0:
                    file.rows(LATE, -1 - row, nbytes, one)
                else:
                    file.rows(info.name, row, 1, one)


Counts = tuple[int, int, int]


def _opened_again(path: str, run: str, start: Counts, counts: Counts, n_empty: int) -> HDF5Source:
    tail = IncrementalReader()
    tables = tail.more(find_files(path) if run else [])
    stop = [before + count for before, count in zip(start, counts, strict=True)]
    contents = Contents(tail, tables.first(*stop).since(*start), start)
    contents.n_empty = n_empty
    source = HDF5Source.of(path, contents)
    if source._run != run or contents.tables.counts != counts:
        raise DamagedFileError(f"{path!r} does not hold any more what was read from it; was it written anew?")
    return source


class Named(msgspec.Struct, frozen=True):
    """A recording that another file shows: where it is, as seen from there, and what it was then."""

    path: str
    records: int
    origin: Origin


def open_source(path: str | os.PathLike[str]) -> HDF5Source | MergedSource:
    """What was recorded."""
    named = merged_of(path)
    if named is None:
        return HDF5Source(path)
    sources = [(_opened(os.fspath(path), one), one.origin) for one in named]
    return MergedSource(sources)


def merged_of(path: str | os.PathLike[str]) -> list[Named] | None:
    """The recordings that a file shows as one; None where it is a recording itself."""
    place = Paths(path).path
    if not os.path.exists(place) or segment_of(place) != MERGED:
        return None
    try:
        with opened_file(place) as file:
            found = msgspec.json.decode(file[SOURCES][:].tobytes(), type=list[Named])
    except (OSError, KeyError, RuntimeError, TypeError, AttributeError, ValueError, msgspec.DecodeError) as error:
        raise DamagedFileError(f"{place!r} does not tell what was merged: {error}") from error
    if not found:
        raise DamagedFileError(f"{place!r} shows nothing")
    return found


def source_path(path: str, named: Named) -> str:
    """Where a recording is that a file shows."""
    return os.path.normpath(os.path.join(os.path.dirname(path), named.path))


def _opened(path: str, named: Named) -> HDF5Source:
    place = source_path(path, named)
    try:
        found = HDF5Source(place)
    except RecordingNotFoundError as error:
        raise RecordingNotFoundError(f"{path!r} shows {place!r}, and there is no recording; put it back") from error
    if found.identity().run != named.origin.run:
        raise DamagedFileError(f"{path!r} shows {place!r}, and another recording took its place")
    if len(found.records()) < named.records:
        raise DamagedFileError(
            f"{path!r} shows {named.records} records of {place!r}, and there are {len(found.records())}"
        )
    return found
