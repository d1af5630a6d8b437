"""What the files of a recording held at one moment, as a recording reads it.

    source = HDF5Source("run.h5")
    source.passes(), source.records()               # tables, in order
    source.values(metas, rows, "activation")        # tensors, read when they are asked for

A record says in which segment its value lies, in which of its data and at which address. Records of one site most often
lie together, in the order in which they were recorded, so many values are one read of the file. Where at least a
quarter of a stretch is asked for, the stretch is read and the rows are picked from it; otherwise each row is read
alone.

Nothing here changes once it was made: rows that came later, and files that were finalized since, are another source's.
A source that is pickled opens its files again, and counts off what it had.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from fastrec._errors import DamagedFileError, RecordingFileError
from fastrec._torch.tensors import outside_torch_modes
from fastrec.events.process import Process
from fastrec.events.sites import SampleId
from fastrec.recording._source import PASS_DTYPE, RECORD_DTYPE, Part, PhaseSteps, Source
from fastrec.sinks._steps import StepTable
from fastrec.sinks.hdf5.blocks import CheckedReader, check_tables
from fastrec.sinks.hdf5.contents import Contents, IncrementalReader, read_contents
from fastrec.sinks.hdf5.layout import (
    OVERFLOW,
    PART_PREFIXES,
    Addresses,
    Bytes,
    DataInfo,
    Identity,
    Integers,
    Rows,
    dtype_named,
    run_edges,
)
from fastrec.sinks.hdf5.reader import ReadFile, find_files
from fastrec.sinks.hdf5.salvage import salvage_contents
from fastrec.sinks.hdf5.save import save_part

MAX_SPAN_BYTES = 16 << 20
"""How many bytes are read at once, including rows that are not asked for."""

DENSE = 4
"""Rows are picked from a stretch that has at most this many times as many."""

DataKey = tuple[int, int]
"""A segment, and the number of its data in the whole recording."""

Counts = tuple[int, int, int]
"""How many rows of passes, records and marks."""


class HDF5Source:
    """The passes that were flushed when it was opened; values are read when they are asked for."""

    def __init__(self, path: str | os.PathLike[str], contents: Contents | None = None, *, verify: bool = False) -> None:
        contents = contents or read_contents(find_files(path))
        self._path = os.path.abspath(path)  # the process may be in another folder when it is pickled
        self._contents = contents
        self._files = contents.files
        self._verify = verify
        self._checked = CheckedReader(contents) if verify else None
        if verify:
            check_tables(contents)
        self._raw = contents.records
        self.catalog = contents.log.catalog
        self._layouts: dict[DataKey, tuple[tuple[int, ...], torch.dtype, int]] = {}
        self._segment_and_data: dict[str, Integers] = {}
        self._encoded_addresses: dict[str, Integers] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        contents = self._contents
        moment = _Moment(contents.start, contents.tables.counts, contents.n_empty, contents.salvaged)
        return _reopen, (self._path, self._run, moment, self._verify)

    @property
    def _run(self) -> str:
        """Which recording it is, empty before its first file."""
        return next(iter(self._files.values())).index.identity.run if self._files else ""

    def facts(self) -> dict[str, Any]:
        """What the recorder wrote of its session."""
        return self._contents.log.facts

    def process(self) -> Process:
        """Which process wrote its last file; a file of an earlier version tells no more than the rank."""
        try:
            process = msgspec.convert(self.facts().get("process", {}), Process)
        except msgspec.ValidationError as error:
            raise DamagedFileError(f"{self._path!r} does not say which process wrote it: {error}") from error
        return process if process.rank >= 0 else msgspec.structs.replace(process, rank=max(-1, self.identity().rank))

    def losses(self) -> list[str]:
        """What is damaged, and not in this source or not certain."""
        return [str(loss) for loss in self._contents.losses] + list(self.facts().get("losses", ()))

    def begun(self) -> int:
        """One more than the highest index of a pass that ended, those that kept nothing included."""
        return self._contents.begun

    def identity(self) -> Identity:
        """What its last file is part of."""
        return list(self._files.values())[-1].index.identity

    def paths(self) -> list[tuple[str, bool]]:
        """The files, and whether each is in progress: it still grows, or its process was killed."""
        return [(file.path, file.in_progress) for file in self._files.values()]

    def counts(self) -> Counts:
        """How many rows of passes, records and marks it has."""
        return self._contents.tables.counts

    def n_passes(self) -> int:
        """How many passes ended, those that kept nothing included."""
        return len(self._contents.passes) + self._contents.n_empty

    def passes(self) -> Rows:
        """One row per pass that kept something or ended badly, of ``PASS_DTYPE``, in order of ``pass_index``."""
        return self._passes[0]

    def records(self) -> Rows:
        """One row per record, of ``RECORD_DTYPE``, in order of (pass, event)."""
        return self._records

    def n_records(self) -> int:
        """How many records there are, known without the table of them."""
        return int(self._passes[0]["count"].sum())

    def steps(self) -> Sequence[PhaseSteps]:
        """The marked steps, of each phase that has some."""
        return self._steps

    def save(self, part: Source, path: str | os.PathLike[str]) -> None:
        """Write a file of a part of it, or of all of it."""
        save_part(part, path, self.facts(), rank=self.identity().rank if self._files else -1)

    def sample_id(self, pass_index: int) -> SampleId | None:
        """The sample id that a pass was logged with."""
        return self._contents.log.samples.get(pass_index)

    def value(self, meta: int, row: int, part: Part) -> Tensor | None:
        """One part of a record, None where it has no such part."""
        prefix = PART_PREFIXES.get(part)
        if row < 0 or prefix is None or self._raw[prefix + "data"][row] < 0:
            return None
        rows = np.array([row])
        return self._read(rows, prefix, *self._keys(rows, prefix))[0]

    def values(self, metas: Integers, rows: Integers, part: Part) -> Sequence[Tensor]:
        """The values of many records in their order, each with its records in front; as few tensors as possible."""
        keys, which = self._keys_of_part(rows, part)
        prefix = PART_PREFIXES[part]
        if len({self._layout(key)[:2] for key in keys}) == 1:
            return [self._read(rows, prefix, keys, which)]
        layouts, _ = self.layouts(rows, part)
        edges = run_edges(layouts).tolist()
        pieces = [rows[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]
        return [self._read(piece, prefix, *self._keys(piece, prefix)) for piece in pieces if len(piece)]

    def layouts(self, rows: Integers, part: Part) -> tuple[Integers, list[tuple[tuple[int, ...], torch.dtype]]]:
        """Which layout the values of records have, and the shape and dtype of each."""
        keys, which = self._keys_of_part(rows, part)
        numbers: dict[tuple[tuple[int, ...], torch.dtype], int] = {}
        of_key = [numbers.setdefault(self._layout(key)[:2], len(numbers)) for key in keys]
        return np.array(of_key, np.int64)[which], list(numbers)

    def nbytes(self, metas: Integers, rows: Integers) -> Integers:
        """The bytes that each record's tensors take."""
        total = np.zeros(len(rows), np.int64)
        for prefix in PART_PREFIXES.values():
            kept = np.flatnonzero(rows >= 0)
            kept = kept[self._raw[prefix + "data"][rows[kept]] >= 0]
            keys, which = self._keys(rows[kept], prefix)
            total[kept] += np.array([self._layout(key)[2] for key in keys], np.int64)[which]
        return total

    def data_info(self, key: DataKey) -> DataInfo:
        """What some data is; a DamagedFileError where the files do not say."""
        if key not in self._contents.log.data or key[0] not in self._files:
            raise DamagedFileError(f"a record lies in data {key[1]} of segment {key[0]}, which does not exist")
        return self._contents.log.data[key]

    @cached_property
    def _passes(self) -> tuple[Rows, Integers]:
        """Passes in order, as ``passes`` gives them, and where the records of each begin in the files' own tables."""
        raw_passes = self._contents.passes
        raw_passes = raw_passes[(raw_passes["count"] > 0) | (raw_passes["outcome"] != 0)]
        order = np.argsort(raw_passes["pass_index"], kind="stable")
        passes = np.zeros(len(raw_passes), PASS_DTYPE)
        for name in PASS_DTYPE.names or ():
            passes[name] = raw_passes[name][order]
        for remap in self._contents.sessions.values():
            remap.offset.clear_open_steps(passes)
        raw_first = passes["first"].copy()
        passes["first"] = np.cumsum(passes["count"]) - passes["count"]
        return passes, raw_first

    @cached_property
    def _records(self) -> Rows:
        """Records in order, as ``records`` gives them."""
        passes, raw_first = self._passes
        first, count, total = passes["first"], passes["count"], self.n_records()
        if total == len(self._raw) and np.array_equal(raw_first, first):
            # They lie in their order, as they do where one thread records.
            raw_rows, raw_records = np.arange(total), self._raw
        else:
            raw_rows = np.repeat(raw_first - first, count) + np.arange(total)
            raw_records = self._raw[raw_rows]
        records = np.empty(total, RECORD_DTYPE)
        records["meta"], records["time"], records["row"] = raw_records["variant"], raw_records["time"], raw_rows
        records["row"][(raw_records["data"] < 0) & (raw_records["transformed_data"] < 0)] = -1
        return records

    @cached_property
    def _steps(self) -> list[PhaseSteps]:
        marks = self._contents.marks
        rows, infos = self._step_rows()
        steps: list[PhaseSteps] = []
        for phase in dict.fromkeys(marks["phase"].tolist()):
            numbers = set(marks["data"][marks["phase"] == phase].tolist())
            if len(numbers) > 1:
                return self._ragged_steps(rows, infos)
            number = numbers.pop()
            of_phase = np.concatenate([rows[key] for key in sorted(rows) if key[1] == number])
            columns = {name: of_phase[f"column:{name}"].copy() for name, _, _ in infos[number].columns}
            step, order = of_phase["step"].copy(), of_phase["order"].copy()
            steps.append(PhaseSteps(phase, step, order, columns, {}, self._session_starts(phase)))
        return steps

    def _session_starts(self, phase: int) -> tuple[int, ...]:
        """With which steps of a phase a session began."""
        return tuple(sorted(self._contents.log.starts.get(phase, ())))

    def _step_rows(self) -> tuple[dict[DataKey, Rows], dict[int, DataInfo]]:
        """The rows of all marks in order, by segment and data."""
        marks = self._contents.marks
        rows: dict[DataKey, Rows] = {}
        infos: dict[int, DataInfo] = {}
        for segment, number in np.unique(marks[["segment", "data"]]).tolist():
            key = segment, number
            infos[number] = info = self.data_info(key)
            dtype = info.step_dtype()
            addresses = Addresses(marks["row"][(marks["segment"] == segment) & (marks["data"] == number)])
            out = np.empty((len(addresses), dtype.itemsize), np.uint8)
            self._read_data(out, key, addresses)
            rows[key] = out.reshape(-1).view(dtype)
            self._contents.sessions[segment].steps(rows[key], info.phase)
        return rows, infos

    def _ragged_steps(self, rows: dict[DataKey, Rows], infos: dict[int, DataInfo]) -> list[PhaseSteps]:
        """Steps of which some have other columns than others."""
        marks = [(int(row["order"]), key[1], row) for key, of_key in rows.items() for row in of_key]
        table = StepTable()
        for _, number, row in sorted(marks, key=lambda mark: mark[0]):
            columns = {name: np.array(row[f"column:{name}"]) for name, _, _ in infos[number].columns}
            table.mark(infos[number].phase, int(row["step"]), columns)
        return [msgspec.structs.replace(steps, starts=self._session_starts(steps.phase)) for steps in table.read()]

    def _keys(self, rows: Integers, prefix: str) -> tuple[list[DataKey], Integers]:
        """The different segments and data of rows, and which of them each row has."""
        together = self._segments_and_data(prefix).take(rows)
        if not len(together):
            return [], np.zeros(0, np.int64)
        # Records of one site lie in few places, one after another, most often in one.
        edges = run_edges(together)
        if len(edges) == 2:
            key = int(together[0])
            return [(key >> 32, key & 0xFFFFFFFF)], np.broadcast_to(np.int64(0), len(together))
        different, which = np.unique(together[edges[:-1]], return_inverse=True)
        return [(key >> 32, key & 0xFFFFFFFF) for key in different.tolist()], np.repeat(which, np.diff(edges))

    def _keys_of_part(self, rows: Integers, part: Part) -> tuple[list[DataKey], Integers]:
        """The same of rows which all have this part; a KeyError has the position of the first that has not."""
        prefix = PART_PREFIXES.get(part)
        if prefix is None:
            raise KeyError(0)
        keys, which = self._keys(rows, prefix) if not len(rows) or rows.min() >= 0 else ([(-1, 0)], rows)
        if keys and min(keys)[0] < 0:
            raise KeyError(int(np.argmax((rows < 0) | (self._segments_and_data(prefix)[rows] < 0))))
        return keys, which

    def _segments_and_data(self, prefix: str) -> Integers:
        """The segment and data of every record in one number, below 0 where it has no value."""
        if prefix not in self._segment_and_data:
            # One number in place of two, because this is compared for every record that is read.
            together = self._raw[prefix + "segment"].astype(np.int64) << 32
            together |= self._raw[prefix + "data"]  # -1 sets all bits
            self._segment_and_data[prefix] = together
        return self._segment_and_data[prefix]

    def _addresses(self, prefix: str, rows: Integers) -> Addresses:
        """The addresses of records' values, each in its data."""
        if prefix not in self._encoded_addresses:
            # Copied once from between the other columns: every later read is the faster for it.
            self._encoded_addresses[prefix] = np.ascontiguousarray(self._raw[prefix + "row"])
        return Addresses(self._encoded_addresses[prefix].take(rows))

    def _layout(self, key: DataKey) -> tuple[tuple[int, ...], torch.dtype, int]:
        """The shape, dtype and bytes of the values of some data."""
        layout = self._layouts.get(key)
        if layout is None:
            info = self.data_info(key)
            layout = self._layouts[key] = info.shape, dtype_named(info.dtype), info.row_bytes()
        return layout

    def _read(self, rows: Integers, prefix: str, keys: list[DataKey], which: Integers) -> Tensor:
        """Values of one layout as one tensor, from the data that they are in."""
        shape, dtype, row_bytes = self._layout(keys[0])
        addresses = self._addresses(prefix, rows)
        self._check_size(keys, addresses, which, row_bytes)
        try:
            out = np.empty((len(rows), row_bytes), np.uint8)
        except MemoryError as error:
            raise RecordingFileError(
                f"there is no memory for {len(rows)} values of {row_bytes} bytes; read fewer at a time, as "
                "Recording.rows and iter_batches do"
            ) from error
        if row_bytes:
            edges = run_edges(which).tolist() if len(keys) > 1 else [0, len(rows)]
            for start, stop in zip(edges, edges[1:], strict=False):
                self._read_data(out[start:stop], keys[which[start]], addresses[start:stop])
        with outside_torch_modes():
            if not row_bytes:
                return torch.empty((len(rows), *shape), dtype=dtype)
            return torch.from_numpy(out.reshape(-1)).view(dtype).reshape(len(rows), *shape)

    def _check_size(self, keys: list[DataKey], addresses: Addresses, which: Integers, row_bytes: int) -> None:
        """Check that files are as large as the values are said to be, before memory is taken for them."""
        for i, key in enumerate(keys):
            name, sets = self.data_info(key).name, self._files[key[0]].index.sets
            in_overflow = (addresses if len(keys) == 1 else addresses[which == i]).in_overflow
            extent, overflow = sets.get(name), sets.get(OVERFLOW)
            if extent is None or (not in_overflow.all() and extent.row_bytes != row_bytes):
                raise DamagedFileError(f"the data set {name!r} does not hold values of {row_bytes} bytes")
            if in_overflow.any() and row_bytes and (overflow is None or overflow.rows < row_bytes):
                raise DamagedFileError(f"the data set {OVERFLOW!r} does not hold values of {row_bytes} bytes")

    def _read_data(self, out: Bytes, key: DataKey, addresses: Addresses) -> None:
        """Read values of one data; ``out`` has a row of bytes for each."""
        file, name, row_bytes = self._files[key[0]], self.data_info(key).name, out.shape[1]
        if self._checked is not None:
            for run, in_overflow in addresses.runs():
                part = addresses[run]
                rows = part.overflow_bytes if in_overflow else part.rows
                self._checked.check(*key, OVERFLOW if in_overflow else name, rows)
        span = max(1, MAX_SPAN_BYTES // row_bytes)
        for start in range(0, len(addresses), span):
            part, into = addresses[start : start + span], out[start : start + span]
            for run, in_overflow in part.runs():
                if in_overflow:
                    _read_overflow(file, part[run].overflow_bytes, into[run])
                else:
                    _read_rows(file, name, part[run].rows, into[run])


def _read_rows(file: ReadFile, name: str, rows: Integers, out: Bytes) -> None:
    """Read rows of a data set, in as few reads as is worth it."""
    low, high = int(rows.min()), int(rows.max())
    if high - low + 1 == len(rows) and (rows[1:] > rows[:-1]).all():
        file.rows(name, low, len(rows), out.reshape(-1))
    elif high - low < DENSE * len(rows):
        out[:] = file.rows(name, low, high - low + 1).reshape(-1, out.shape[1])[rows - low]
    else:
        for row, into in zip(rows.tolist(), out, strict=True):
            file.rows(name, row, 1, into)


def _read_overflow(file: ReadFile, first_bytes: Integers, out: Bytes) -> None:
    """Read values from the overflow set, at once where they lie one after another."""
    row_bytes = out.shape[1]
    if (np.diff(first_bytes) == row_bytes).all():
        file.rows(OVERFLOW, int(first_bytes[0]), out.size, out.reshape(-1))
    else:
        for first_byte, into in zip(first_bytes.tolist(), out, strict=True):
            file.rows(OVERFLOW, first_byte, row_bytes, into)


class _Moment(msgspec.Struct):
    """What a source had of its files: the rows from ``start`` on, and how many."""

    start: Counts
    counts: Counts
    n_empty: int
    salvaged: bool


def _reopen(path: str, run: str, moment: _Moment, verify: bool) -> HDF5Source:
    """A source of the same moment, in the process that unpickles it."""
    if moment.salvaged:
        contents = salvage_contents(path)
    else:
        reader, start = IncrementalReader(), moment.start
        tables = reader.read_new(find_files(path) if run else [])
        stop = [before + count for before, count in zip(start, moment.counts, strict=True)]
        contents = Contents(reader, tables.head(*stop).tail(*start), start)
        contents.n_empty = moment.n_empty
    source = HDF5Source(path, contents, verify=verify)
    if source._run != run or contents.tables.counts != moment.counts:
        raise DamagedFileError(f"{path!r} no longer holds what was read from it; was it written again?")
    return source
