"""Several recordings read as one: those of the ranks of a distributed run, or of workers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec.events.sites import Catalog, Origin, RecordMeta
from fastrec.recording._source import PASS_DTYPE, RECORD_DTYPE, Part, PhaseSteps, Source

Integers = npt.NDArray[np.int64]


class MergedSource:
    """The passes of the first source, then those of the second, and so on; values are read from the sources.

    Sites, metas and entries that are alike in two sources are one. Phases stay apart even where they have the same
    name, because each source counts the steps of its own.
    """

    def __init__(self, sources: Sequence[tuple[Source, Origin]]) -> None:
        self.catalog = Catalog(sources[0][0].catalog.header)
        self._parts: list[_Part] = []
        self.began = min(origin.began for _, origin in sources)
        first_pass = first_record = first_mark = 0
        for source, origin in sources:
            part = _Part(source, self.catalog, first_record, first_mark)
            origin = msgspec.structs.replace(origin, first_pass=first_pass, phases=tuple(part.phases.tolist()))
            part.take_over(self.catalog, origin, origin.began - self.began)
            self._parts.append(part)
            first_pass += origin.passes
            first_record += len(part.records)
            first_mark += part.n_marks
        self._firsts = np.array([part.first_record for part in self._parts])
        self._given = sources

    def __reduce__(self) -> tuple[Any, ...]:
        # The sources open their files again elsewhere, and the tables are made of them as they were here.
        return MergedSource, (self._given,)

    def sources(self) -> list[Any]:
        """What was merged, in order."""
        return [part.source for part in self._parts]

    def facts(self) -> dict[str, Any]:
        """What the recorder of the first source said of its session."""
        return {**self.sources()[0].facts(), "began": self.began}

    def begun(self) -> int:
        """One more than the highest index of a pass that ended, those that kept nothing included."""
        return sum(origin.passes for origin in self.catalog.origins)

    def n_passes(self) -> int:
        """How many passes ended, those that kept nothing included."""
        return sum(part.source.n_passes() for part in self._parts)

    def passes(self) -> npt.NDArray[Any]:
        """One row per pass that kept something or ended badly, of ``PASS_DTYPE``, in order of (source, pass)."""
        return self._passes

    def records(self) -> npt.NDArray[Any]:
        """One row per record, of ``RECORD_DTYPE``, in order of (source, pass, event)."""
        return self._records

    def steps(self) -> Sequence[PhaseSteps]:
        """The marked steps, of each phase of each source that has some."""
        return [steps for part in self._parts for steps in part.steps]

    def sample_id(self, pass_index: int) -> str | int | None:
        """The sample id that a pass was logged with."""
        for origin, part in zip(self.catalog.origins, self._parts, strict=True):
            if 0 <= pass_index - origin.first_pass < origin.passes:
                return part.source.sample_id(pass_index - origin.first_pass)
        return None

    def value(self, meta: int, row: int, part: Part) -> Tensor | None:
        """One part of a record, None where it has no such part."""
        if row < 0:
            return None
        own = self._parts[int(self._of(np.array([row]))[0])]
        (own_variant, own_row), *_ = own.places(np.array([row])).tolist()
        return own.source.value(own_variant, own_row, part)

    def values(self, metas: Integers, rows: Integers, part: Part) -> Sequence[Tensor]:
        """The values of many records in their order."""
        found: list[Tensor] = []
        for at, own in self._runs(rows):
            places = own.places(rows[at])
            try:
                found += own.source.values(places[:, 0], places[:, 1], part)
            except KeyError as missing:
                raise KeyError(at.start + missing.args[0]) from None
        return found

    def layouts(self, rows: Integers, part: Part) -> tuple[Integers, list[tuple[tuple[int, ...], torch.dtype]]]:
        """Which layout the values of records have, and the shape and dtype of each."""
        numbers: dict[tuple[tuple[int, ...], torch.dtype], int] = {}
        which = np.zeros(len(rows), np.int64)
        for at, own in self._runs(rows):
            try:
                found, layouts = own.source.layouts(own.places(rows[at])[:, 1], part)
            except KeyError as missing:
                raise KeyError(at.start + missing.args[0]) from None
            which[at] = np.array([numbers.setdefault(layout, len(numbers)) for layout in layouts], np.int64)[found]
        return which, list(numbers)

    def nbytes(self, metas: Integers, rows: Integers) -> Integers:
        """The bytes that each record's tensors take."""
        total = np.zeros(len(rows), np.int64)
        for at, own in self._runs(rows):
            places = own.places(rows[at])
            total[at] = own.source.nbytes(places[:, 0], places[:, 1])
        return total

    @cached_property
    def _passes(self) -> npt.NDArray[Any]:
        return np.concatenate([part.passes for part in self._parts])

    @cached_property
    def _records(self) -> npt.NDArray[Any]:
        return np.concatenate([part.records for part in self._parts])

    def _of(self, rows: Integers) -> Integers:
        """Which source each row is of; one that has no value is of the first."""
        return np.maximum(np.searchsorted(self._firsts, rows, side="right") - 1, 0)

    def _runs(self, rows: Integers) -> list[tuple[slice, _Part]]:
        """Stretches of rows that are of one source."""
        which = self._of(rows)
        edges = [0, *(np.flatnonzero(np.diff(which)) + 1).tolist(), len(rows)]
        return [(slice(a, b), self._parts[which[a]]) for a, b in zip(edges, edges[1:], strict=False) if b > a]


class _Part:
    """One source, and what its numbers are among those of all."""

    def __init__(self, source: Source, catalog: Catalog, first_record: int, first_mark: int) -> None:
        own = source.catalog
        self.source = source
        self.first_record = first_record
        sites = _numbers(catalog.sites.add(site) for site in own.sites.items)
        specs = _numbers(catalog.specs.add(spec) for spec in own.specs.items)
        self.entries = _numbers(catalog.entries.add(entry) for entry in own.entries.items)
        self.phases = _numbers(catalog.phases.append(phase) for phase in own.phases.items)
        self._metas = _numbers(catalog.metas.add(_renumbered(meta, sites, specs)) for meta in own.metas.items)
        records = source.records()
        self._own = np.stack([records["meta"].astype(np.int64), records["row"]], 1)
        self.records = np.empty(len(records), RECORD_DTYPE)
        self.records["meta"], self.records["time"] = self._metas[records["meta"]], records["time"]
        at = first_record + np.arange(len(records))
        self.records["row"] = np.where(records["row"] < 0, -1, at)
        marked = source.steps()
        self.n_marks = sum(len(steps.numbers) for steps in marked)
        self.steps = [
            msgspec.structs.replace(steps, phase=int(self.phases[steps.phase]), order=steps.order + first_mark)
            for steps in marked
        ]

    def take_over(self, catalog: Catalog, origin: Origin, later: float) -> None:
        """Number the passes among those of all; the session began so many seconds after the first one."""
        passes = self.source.passes().astype(PASS_DTYPE)
        passes["pass_index"] += origin.first_pass
        passes["entry"], passes["phase"] = self.entries[passes["entry"]], self.phases[passes["phase"]]
        passes["started"] += later
        passes["first"] += self.first_record
        self.passes = passes
        catalog.origins.append(origin)
        own = self.source.catalog
        catalog.halted.update({origin.first_pass + index: why for index, why in own.halted.items()})
        catalog.failures += own.failures

    def places(self, rows: Integers) -> Integers:
        """The meta and row in the source of each of the rows that were given out for it."""
        found: Integers = np.where(rows[:, None] < 0, -1, self._own[np.maximum(rows - self.first_record, 0)])
        return found


def _numbers(found: Any) -> Integers:
    return np.array(list(found), np.int64)


def _renumbered(meta: RecordMeta, sites: Integers, specs: Integers) -> RecordMeta:
    def events(found: tuple[tuple[int, int, str], ...] | None) -> tuple[tuple[int, int, str], ...] | None:
        return found and tuple((int(sites[site]), number, label) for site, number, label in found)

    return msgspec.structs.replace(
        meta,
        site=int(sites[meta.site]),
        spec=int(specs[meta.spec]),
        recent_events=events(meta.recent_events),
        recent_ops=events(meta.recent_ops),
    )
