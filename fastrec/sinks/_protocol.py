"""What the parts promise each other: predicates, engines and sinks slot in by these protocols alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt
import torch

from fastrec.events.sites import Catalog, PassInfo
from fastrec.recording._source import Source


class ColumnWriter(Protocol):
    """The values of one site, shape, dtype and spec, row by row."""

    def append(self, value: torch.Tensor) -> int:
        """Copy a value now; its row."""

    def discard(self, row: int) -> None:
        """Forget a row: its pass failed."""


class PassLog(Protocol):
    """What a sink writes beside the values."""

    def commit(self, info: PassInfo, metas: Sequence[int], rows: Sequence[int], times: Sequence[float]) -> None:
        """A pass ended: its records in event order, times on the clock of ``info.started``."""

    def mark(self, phase: int, step: int, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """A step was marked."""

    def close(self) -> None:
        """The session ended."""


class Sink(Protocol):
    """Where records go."""

    def open(self, catalog: Catalog) -> PassLog:
        """A session begins."""

    def column(self, meta: int, value: torch.Tensor) -> ColumnWriter:
        """Where the values of a meta go that are like this one in class, shape, strides, dtype and device."""


class ReadableSink(Protocol):
    """A sink whose records can be read while they are written, and handed over."""

    def source(self) -> Source:
        """The passes that ended so far; later ones do not change it."""

    def take(self) -> Source:
        """The passes that ended so far, which are forgotten here."""

    def trim(self, *, passes: int | None = None, steps: int | None = None) -> None:
        """Forget all but the last passes; or all but the last steps of each phase, where a phase has steps."""
