"""A part of a recording as a source of its own: what a file is written of.

part = PartSource(view, steps.tables)
part.passes(), part.records()        # those of the view, numbered anew; values are still read from its source
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from os import PathLike

import numpy as np
from torch import Tensor, dtype

from fastrec.events.sites import SampleId
from fastrec.recording._source import Integers, Part, PhaseSteps, Source, StructuredArray
from fastrec.recording._view import View


class PartSource:
    """The passes, records and steps of a selection. It holds no values of its own."""

    def __init__(self, view: View, steps: Sequence[PhaseSteps]) -> None:
        self.catalog = view.catalog
        self._view = view
        self._source = view.source
        self._steps = steps

    def n_passes(self) -> int:
        """How many passes the selection has."""
        return self._view.n_passes

    def passes(self) -> StructuredArray:
        """Its passes, which keep their indices, with where their records are in ``records``."""
        return self._passes

    def records(self) -> StructuredArray:
        """Its records."""
        return self._records

    def steps(self) -> Sequence[PhaseSteps]:
        """Its steps, which keep their numbers."""
        return self._steps

    def sample_id(self, pass_index: int) -> SampleId | None:
        """The sample id that a pass was logged with."""
        return self._source.sample_id(pass_index)

    def value(self, meta: int, row: int, part: Part) -> Tensor | None:
        """One part of a record."""
        return self._source.value(meta, row, part)

    def values(self, metas: Integers, rows: Integers, part: Part) -> Sequence[Tensor]:
        """The values of many records."""
        return self._source.values(metas, rows, part)

    def layouts(self, rows: Integers, part: Part) -> tuple[Integers, Sequence[tuple[tuple[int, ...], dtype]]]:
        """The shapes and dtypes of these records."""
        return self._source.layouts(rows, part)

    def nbytes(self, metas: Integers, rows: Integers) -> Integers:
        """The bytes of each record."""
        return self._source.nbytes(metas, rows)

    def save(self, part: Source, path: str | PathLike[str]) -> None:
        """Write a file of a part of it."""
        self._source.save(part, path)

    @cached_property
    def _passes(self) -> StructuredArray:
        passes: StructuredArray = self._view.passes.copy()
        passes["count"] = np.bincount(self._view.pass_positions, minlength=len(passes))
        passes["first"] = np.cumsum(passes["count"]) - passes["count"]
        return passes

    @cached_property
    def _records(self) -> StructuredArray:
        records: StructuredArray = self._source.records()[self._view.positions]
        return records
