"""What a recording reads from: the ``Source`` protocol, and the tables that a source hands out.

RAM, a folder of files and several merged recordings each implement it; ``tests/contracts/sink.py`` holds them to it.
Passes and records are structured arrays and values are asked for many at a time, so that reading a million records
makes no million objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Protocol, TypeAlias, get_args

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from fastrec.events.sites import Catalog, Outcome, SampleId

Array: TypeAlias = npt.NDArray[Any]

Integers: TypeAlias = npt.NDArray[np.int64]

StructuredArray: TypeAlias = npt.NDArray[np.void]

Part: TypeAlias = str
"""Which tensor of a record, one of ``PARTS``."""

PARTS: tuple[Part, ...] = ("activation", "transformed_activation", "gradient")

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""How a pass ended; a row of ``PASS_DTYPE`` holds the position in this tuple."""

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
"""One pass: the fields of ``PassInfo``, and its records: ``count`` rows of the record table, from ``first`` on."""

RECORD_DTYPE = np.dtype([("meta", "i4"), ("row", "i8"), ("time", "f8")])
"""One record: its meta, the row of its value (-1 where no tensor was kept), and seconds since its pass began."""


class Source(Protocol):
    """Where a recording reads from: a snapshot that never changes, whatever is recorded later."""

    catalog: Catalog

    def n_passes(self) -> int:
        """How many passes ended, including those that kept nothing."""

    def passes(self) -> StructuredArray:
        """One row of ``PASS_DTYPE`` for each pass that kept something or failed, in order of ``pass_index``.

        ``started`` is in seconds since the session began.
        """

    def records(self) -> StructuredArray:
        """One row of ``RECORD_DTYPE`` for each record, in order of (pass, event)."""

    def steps(self) -> Sequence[PhaseSteps]:
        """The marked steps of each phase that has some."""

    def sample_id(self, pass_index: int) -> SampleId | None:
        """The sample id that a pass was logged with."""

    def value(self, meta: int, row: int, part: Part) -> torch.Tensor | None:
        """One part of a record; None where the record has no such part (yet)."""

    def values(self, metas: Integers, rows: Integers, part: Part) -> Sequence[torch.Tensor]:
        """The values of many records in their order, in as few tensors as possible, each of shape [records, ...].

        Raises KeyError with the position of the first record that has no such part.
        """

    def layouts(self, rows: Integers, part: Part) -> tuple[Integers, Sequence[tuple[tuple[int, ...], torch.dtype]]]:
        """The shapes and dtypes that values of these records have, and for each record which of them is its own.

        Raises KeyError as ``values`` does.
        """

    def nbytes(self, metas: Integers, rows: Integers) -> Integers:
        """The bytes that the tensors of each record take."""

    def save(self, part: Source, path: str | PathLike[str]) -> None:
        """Write a file of a part of this source, or of all of it, at a path at which there is nothing yet."""


class PhaseSteps(msgspec.Struct, frozen=True):
    """The marked steps of one phase.

    ``numbers`` counts the marks of the phase, ``order`` those of all phases. ``columns`` hold one row per mark, masked
    where a mark did not give that column. ``columns_before`` are the columns of the mark before the first one, where it
    is known: a trimmed or popped recording needs them to tell whether an environment had just ended. ``starts`` are the
    numbers of the marks with which a further session began, in a recording that was continued.
    """

    phase: int
    numbers: Integers
    order: Integers
    columns: Mapping[str, Array]
    columns_before: Mapping[str, Array]
    starts: tuple[int, ...] = ()
