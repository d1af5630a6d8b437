"""Several recordings read as one: those of the ranks of a distributed run, or of workers.

    merged = MergedSource([(source_of_rank_0, origin_0), (source_of_rank_1, origin_1)])
    open_source("run.h5")       # such a source, where run.h5 is a file that only shows other recordings

Each source numbers its sites, metas, phases and passes by itself. ``_MergedPart`` holds, for one of them, what its
numbers become among those of all. A row of a record here is its position over all sources, so it leads back to the
source and to the row there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import h5py
import msgspec
import numpy as np
import torch
from torch import Tensor

from fastrec._errors import DamagedFileError, FastrecError, RecordingNotFoundError
from fastrec.events.sites import Catalog, Origin, RecordMeta, SampleId
from fastrec.recording._source import PASS_DTYPE, RECORD_DTYPE, Part, PhaseSteps, Source
from fastrec.sinks.hdf5.layout import MERGED, SOURCES, Integers, Rows, run_edges
from fastrec.sinks.hdf5.paths import Paths
from fastrec.sinks.hdf5.reader import segment_of
from fastrec.sinks.hdf5.salvage import salvage_contents
from fastrec.sinks.hdf5.save import save_part
from fastrec.sinks.hdf5.source import HDF5Source
from fastrec.sinks.hdf5.structure import MAX_INDEX_BYTES, open_verified, plain_dataset


class MergedSource:
    """The passes of the first source, then those of the second, and so on; values are read from the sources.

    Sites, metas and entries that are alike in two sources are one. Phases stay apart even where they have the same
    name, because each source counts its own steps. ``losses`` tell of what is missing between the sources.
    """

    def __init__(self, sources: Sequence[tuple[HDF5Source, Origin]], losses: Sequence[str] = ()) -> None:
        self.catalog = Catalog(sources[0][0].catalog.header)
        self.began = min(origin.began for _, origin in sources)
        self._sources = sources
        self._losses = list(losses)
        self._parts: list[_MergedPart] = []
        first_pass = first_record = first_mark = 0
        for source, origin in sources:
            part = _MergedPart(source, self.catalog, first_record, first_mark)
            origin = msgspec.structs.replace(origin, first_pass=first_pass, phases=tuple(part.phases.tolist()))
            part.number_passes(self.catalog, origin, seconds_later=origin.began - self.began)
            self._parts.append(part)
            first_pass += origin.passes
            first_record += part.n_records
            first_mark += part.n_marks
        self._first_records = np.array([part.first_record for part in self._parts])

    def __reduce__(self) -> tuple[Any, ...]:
        # The sources open their files again elsewhere, and the tables are made of them as they were here.
        return MergedSource, (self._sources, self._losses)

    def sources(self) -> list[HDF5Source]:
        """What was merged, in order."""
        return [part.source for part in self._parts]

    def facts(self) -> dict[str, Any]:
        """What the recorder of the first source wrote of its session."""
        facts = {**self.sources()[0].facts(), "began": self.began}
        facts.pop("process", None)  # each origin has its own
        return facts

    def losses(self) -> list[str]:
        """What is damaged in the sources, and not in this one or not certain."""
        return self._losses + [loss for source in self.sources() for loss in source.losses()]

    def begun(self) -> int:
        """One more than the highest index of a pass that ended, those that kept nothing included."""
        return sum(origin.passes for origin in self.catalog.origins)

    def n_passes(self) -> int:
        """How many passes ended, those that kept nothing included."""
        return sum(part.source.n_passes() for part in self._parts)

    def passes(self) -> Rows:
        """One row per pass that kept something or ended badly, of ``PASS_DTYPE``, in order of (source, pass)."""
        return self._passes

    def records(self) -> Rows:
        """One row per record, of ``RECORD_DTYPE``, in order of (source, pass, event)."""
        return self._records

    def steps(self) -> Sequence[PhaseSteps]:
        """The marked steps, of each phase of each source that has some."""
        return [steps for part in self._parts for steps in part.steps]

    def save(self, part: Source, path: str | os.PathLike[str]) -> None:
        """Write a file of a part of it, or of all of it."""
        save_part(part, path, self.facts())

    def sample_id(self, pass_index: int) -> SampleId | None:
        """The sample id that a pass was logged with."""
        for origin, part in zip(self.catalog.origins, self._parts, strict=True):
            if 0 <= pass_index - origin.first_pass < origin.passes:
                return part.source.sample_id(pass_index - origin.first_pass)
        return None

    def value(self, meta: int, row: int, part: Part) -> Tensor | None:
        """One part of a record, None where it has no such part."""
        if row < 0:
            return None
        merged_part = self._parts[int(self._parts_of(np.array([row]))[0])]
        source_meta, source_row = merged_part.metas_and_rows(np.array([row]))[0].tolist()
        return merged_part.source.value(source_meta, source_row, part)

    def values(self, metas: Integers, rows: Integers, part: Part) -> Sequence[Tensor]:
        """The values of many records in their order."""
        values: list[Tensor] = []
        for positions, merged_part in self._runs(rows):
            in_source = merged_part.metas_and_rows(rows[positions])
            try:
                values += merged_part.source.values(in_source[:, 0], in_source[:, 1], part)
            except KeyError as missing:
                raise KeyError(positions.start + missing.args[0]) from None
        return values

    def layouts(self, rows: Integers, part: Part) -> tuple[Integers, list[tuple[tuple[int, ...], torch.dtype]]]:
        """Which layout the values of records have, and the shape and dtype of each."""
        numbers: dict[tuple[tuple[int, ...], torch.dtype], int] = {}
        which = np.zeros(len(rows), np.int64)
        for positions, merged_part in self._runs(rows):
            try:
                in_source, layouts = merged_part.source.layouts(merged_part.metas_and_rows(rows[positions])[:, 1], part)
            except KeyError as missing:
                raise KeyError(positions.start + missing.args[0]) from None
            of_source = [numbers.setdefault(layout, len(numbers)) for layout in layouts]
            which[positions] = np.array(of_source, np.int64)[in_source]
        return which, list(numbers)

    def nbytes(self, metas: Integers, rows: Integers) -> Integers:
        """The bytes that each record's tensors take."""
        total = np.zeros(len(rows), np.int64)
        for positions, merged_part in self._runs(rows):
            in_source = merged_part.metas_and_rows(rows[positions])
            total[positions] = merged_part.source.nbytes(in_source[:, 0], in_source[:, 1])
        return total

    @cached_property
    def _passes(self) -> Rows:
        return np.concatenate([part.passes for part in self._parts])

    @cached_property
    def _records(self) -> Rows:
        # Made when they are first needed, in one table: a folder may have many records of which nobody asks.
        records = np.empty(sum(part.n_records for part in self._parts), RECORD_DTYPE)
        for part in self._parts:
            part.write_records(records[part.first_record : part.first_record + part.n_records])
        return records

    def _parts_of(self, rows: Integers) -> Integers:
        """Which source each row is of; one that has no value is of the first."""
        return np.maximum(np.searchsorted(self._first_records, rows, side="right") - 1, 0)

    def _runs(self, rows: Integers) -> list[tuple[slice, _MergedPart]]:
        """Stretches of rows that are of one source."""
        which = self._parts_of(rows)
        edges = run_edges(which).tolist()
        return [(slice(a, b), self._parts[which[a]]) for a, b in zip(edges, edges[1:], strict=False) if b > a]


class _MergedPart:
    """One source, and what its numbers are among those of all."""

    def __init__(self, source: HDF5Source, catalog: Catalog, first_record: int, first_mark: int) -> None:
        source_catalog = source.catalog
        self.source = source
        self.first_record = first_record
        sites = _numbers(catalog.sites.add(site) for site in source_catalog.sites.items)
        specs = _numbers(catalog.specs.add(spec) for spec in source_catalog.specs.items)
        metas: Iterable[RecordMeta] = source_catalog.metas.items
        if not (_are_the_same(sites) and _are_the_same(specs)):  # as they are where the processes ran the same
            metas = (_renumbered(meta, sites, specs) for meta in metas)
        self._metas = _numbers(catalog.metas.add(meta) for meta in metas)
        self.entries = _numbers(catalog.entries.add(entry) for entry in source_catalog.entries.items)
        # Appended, not added: phases of the same name in two sources stay two.
        self.phases = _numbers(catalog.phases.append(phase) for phase in source_catalog.phases.items)
        self.n_records = source.n_records()
        marked = source.steps()
        self.n_marks = sum(len(steps.numbers) for steps in marked)
        self.steps = [
            msgspec.structs.replace(steps, phase=int(self.phases[steps.phase]), order=steps.order + first_mark)
            for steps in marked
        ]

    def number_passes(self, catalog: Catalog, origin: Origin, *, seconds_later: float) -> None:
        """Number the passes among those of all; ``seconds_later`` is when the session began, after the first one."""
        passes = self.source.passes().astype(PASS_DTYPE)
        passes["pass_index"] += origin.first_pass
        passes["entry"], passes["phase"] = self.entries[passes["entry"]], self.phases[passes["phase"]]
        passes["started"] += seconds_later
        passes["first"] += self.first_record
        self.passes = passes
        catalog.origins.append(origin)
        source_catalog = self.source.catalog
        catalog.halted.update({origin.first_pass + i: reason for i, reason in source_catalog.halted.items()})
        catalog.failures += source_catalog.failures

    def write_records(self, out: Rows) -> None:
        """Write the records with their numbers among those of all."""
        records = self.source.records()
        out["meta"], out["time"] = self._metas[records["meta"]], records["time"]
        out["row"] = np.where(records["row"] < 0, -1, self.first_record + np.arange(len(records)))

    def metas_and_rows(self, rows: Integers) -> Integers:
        """The meta and the row in the source of rows that were given out for it."""
        in_source = self.source.records()[np.maximum(rows - self.first_record, 0)]
        both = np.stack([in_source["meta"].astype(np.int64), in_source["row"]], 1)
        return np.where(rows[:, None] < 0, -1, both)


def _numbers(numbers: Iterable[int]) -> Integers:
    return np.array(list(numbers), np.int64)


def _are_the_same(numbers: Integers) -> bool:
    """Whether each number stays what it is."""
    return bool((numbers == np.arange(len(numbers))).all())


def _renumbered(meta: RecordMeta, sites: Integers, specs: Integers) -> RecordMeta:
    def events(triples: tuple[tuple[int, int, str], ...] | None) -> tuple[tuple[int, int, str], ...] | None:
        return triples and tuple((int(sites[site]), number, label) for site, number, label in triples)

    return msgspec.structs.replace(
        meta,
        site=int(sites[meta.site]),
        spec=int(specs[meta.spec]),
        recent_events=events(meta.recent_events),
        recent_ops=events(meta.recent_ops),
    )


class ShownRecording(msgspec.Struct, frozen=True):
    """A recording that another file shows: where it is, as seen from there, and what it was then."""

    path: str
    records: int
    origin: Origin


def open_source(
    path: str | os.PathLike[str], *, verify: bool = False, salvage: bool = False
) -> HDF5Source | MergedSource:
    """What was recorded, or what is left of it; ``verify``: values are compared with their checksums."""

    def open_one(path: str | os.PathLike[str]) -> HDF5Source:
        return HDF5Source(path, salvage_contents(path) if salvage else None, verify=verify and not salvage)

    recordings = shown_recordings(path)
    if recordings is None:
        return open_one(path)
    path = os.fspath(path)
    return MergedSource([(_open_shown(path, shown, open_one, salvage), shown.origin) for shown in recordings])


def shown_recordings(path: str | os.PathLike[str]) -> list[ShownRecording] | None:
    """The recordings that a file shows as one; None where it is a recording itself."""
    path = Paths(path).path
    try:
        if segment_of(path) != MERGED:
            return None
    except FileNotFoundError:
        return None
    try:
        with open_verified(path) as file:
            sources = plain_dataset(file, SOURCES, 1)
            if sources.get_space().get_simple_extent_npoints() > MAX_INDEX_BYTES:
                raise DamagedFileError(f"{path!r} does not say what was merged: {SOURCES!r} is too long")
            content = h5py.Dataset(sources)[:].tobytes()
        recordings = msgspec.json.decode(content, type=list[ShownRecording])
    except FastrecError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, AttributeError, ValueError, msgspec.DecodeError) as error:
        raise DamagedFileError(f"{path!r} does not say what was merged: {error}") from error
    if not recordings:
        raise DamagedFileError(f"{path!r} shows no recordings")
    for recording in recordings:
        if not is_near(recording.path):
            raise DamagedFileError(
                f"{path!r} names {recording.path!r} as a recording that it shows; a merged file only shows recordings "
                "in its own folder, below it or in a folder beside it"
            )
    return recordings


def is_near(relative_path: str) -> bool:
    """Whether a path, as seen from a file, leads to its folder, below it, or to a folder beside it.

    A file that shows others may come from anywhere, and must not reach whatever the reader has elsewhere.
    """
    parts = os.path.normpath(relative_path).split(os.sep)
    is_relative = not os.path.isabs(relative_path) and "\0" not in relative_path
    return is_relative and parts[1:2] != [os.pardir] and parts[-1] != os.pardir


def shown_path(path: str, shown: ShownRecording) -> str:
    """Where a recording is that the file at ``path`` shows."""
    folder = os.path.dirname(path)
    given = os.path.normpath(os.path.join(folder, shown.path))
    if os.path.islink(path) and not os.path.lexists(given):  # a link to the merged file from somewhere else
        return os.path.normpath(os.path.join(os.path.dirname(os.path.realpath(path)), shown.path))
    return given


def _open_shown(path: str, shown: ShownRecording, open_one: Callable[[str], HDF5Source], salvage: bool) -> HDF5Source:
    source_path = shown_path(path, shown)
    try:
        source = open_one(source_path)
    except RecordingNotFoundError as error:
        raise RecordingNotFoundError(
            f"{path!r} shows {source_path!r}, where there is no recording; put it back"
        ) from error
    if source.identity().run != shown.origin.run:
        raise DamagedFileError(f"{path!r} shows {source_path!r}, and another recording took its place")
    n_records = source.n_records()
    if n_records < shown.records and not salvage:
        raise DamagedFileError(f"{path!r} shows {shown.records} records of {source_path!r}, but there are {n_records}")
    return source
