"""What the parts promise each other: predicates, engines and sinks slot in by these protocols alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from fastrec.events.sites import Catalog


class PhaseSteps(msgspec.Struct, frozen=True):
    """The marked steps of one phase.

    ``numbers`` counts the marks of the phase, ``order`` those of all phases. ``columns`` hold one row per mark, masked
    where a mark did not give that column. ``before`` are the columns of the mark before the first one, as far as it is
    known: what a trimmed or popped recording needs to tell whether an environment had just ended. ``starts`` are the
    numbers of the marks with which another session began, in a recording that was continued.
    """

    phase: int
    numbers: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    columns: Mapping[str, npt.NDArray[Any]]
    before: Mapping[str, npt.NDArray[Any]]
    starts: tuple[int, ...] = ()


class Source(Protocol):
    """Where a recording reads from, RAM or a file: a snapshot, the same whenever it is read."""

    catalog: Catalog

    def n_passes(self) -> int:
        """How many passes ended, those that kept nothing included."""

    def passes(self) -> npt.NDArray[Any]:
        """One row per pass that kept something or ended badly, of ``PASS_DTYPE``, in order of ``pass_index``.

        ``started`` is in seconds since the session began.
        """

    def records(self) -> npt.NDArray[Any]:
        """One row per record, of ``RECORD_DTYPE``, in order of (pass, event); row -1 where no tensor was kept."""

    def steps(self) -> Sequence[PhaseSteps]:
        """The marked steps, of each phase that has some."""

    def sample_id(self, pass_index: int) -> str | int | None:
        """The sample id that a pass was logged with."""

    def value(self, meta: int, row: int, part: Part) -> torch.Tensor | None:
        """One part of a record, None where it has no such part (yet)."""

    def values(self, metas: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], part: Part) -> Sequence[torch.Tensor]:
        """The values of many records in their order, as few tensors as possible, each with its records in front.

        A KeyError tells the position of the first record that has no such part.
        """

    def layouts(
        self, rows: npt.NDArray[np.int64], part: Part
    ) -> tuple[npt.NDArray[np.int64], Sequence[tuple[tuple[int, ...], torch.dtype]]]:
        """Which layout the values of records have, and the shape and dtype of each; a KeyError as of ``values``."""

    def nbytes(self, metas: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The bytes that each record's tensors take."""


Part = str
"""Which tensor of a record: "activation", "transformed_activation" or "gradient"."""

PASS_DTYPE = np.dtype(
    [
        ("pass_index", "i8"),
        ("entry", "i4"),
        ("entry_pass", "i8"),
        ("phase", "i4"),
        ("grad", "?"),
        ("outcome", "i1"),
        ("step", "i8"),
        ("started", "f8"),
        ("duration", "f8"),
        ("first", "i8"),
        ("count", "i8"),
    ]
)

RECORD_DTYPE = np.dtype([("meta", "i4"), ("row", "i8"), ("time", "f8")])

OUTCOMES: tuple[Literal["ok", "failed", "halted"], ...] = ("ok", "failed", "halted")
