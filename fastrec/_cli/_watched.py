"""A source that tells how much of it was read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastrec.recording._source import Part, Source


class Watched:
    """Another source, which calls a function with the bytes that were read and those that there are."""

    def __init__(self, source: Source, told: Callable[[int, int], None]) -> None:
        self._source = source
        self._told = told
        records = source.records()
        self._total = int(source.nbytes(records["variant"].astype(np.int64), records["row"]).sum())
        self._done = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def values(self, variants: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], part: Part) -> Sequence[Tensor]:
        """The values of many records in their order."""
        found = self._source.values(variants, rows, part)
        self._done += sum(piece.nbytes for piece in found)
        self._told(min(self._done, self._total), self._total)
        return found
