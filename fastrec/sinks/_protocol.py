"""Where records go: the protocols that every sink implements, and that ``tests/contracts/sink.py`` holds it to.

    pass_log = sink.open(catalog)  # when the session opens
    column = sink.column(meta, value)  # when the first value of a kind appears
    row = column.append(value)  # at each event that is kept: the value is copied now
    pass_log.commit(info, metas, rows, times)  # when the pass ends; or column.discard(row) for each of its records

A sink knows records and nothing of models, engines or predicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from fastrec.events.sites import Catalog, PassInfo
from fastrec.recording._source import Array


class Sink(Protocol):
    """Where the records of one session go."""

    def open(self, catalog: Catalog) -> PassLog:
        """Begin a session; the catalog grows while it runs."""

    def column(self, meta: int, value: torch.Tensor) -> ColumnWriter:
        """Where values of a meta go that have the class, shape, strides, dtype and device of this one.

        Raises UnsupportedTensorError for a tensor of which no right copy can be made.
        """


class ColumnWriter(Protocol):
    """The values of one site, shape, dtype and spec, row by row. Threads may call it at the same time."""

    def append(self, value: torch.Tensor) -> int:
        """Copy a value now, and return its row."""

    def discard(self, row: int) -> None:
        """Forget a row, because its pass failed."""


class PassLog(Protocol):
    """What a sink writes beside the values: passes, and the steps that the user marks."""

    def commit(self, info: PassInfo, metas: Sequence[int], rows: Sequence[int], times: Sequence[float]) -> None:
        """Add a pass that ended, with its records in event order; times are on the clock of ``info.started``."""

    def mark(self, phase: int, step: int, columns: Mapping[str, Array]) -> None:
        """Add a step that was marked."""

    def close(self) -> None:
        """End the session."""
