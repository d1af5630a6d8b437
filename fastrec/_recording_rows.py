"""The values of a key as rows that are read when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec._contracts import Part
from fastrec._errors import OptionError, RaggedError
from fastrec._recording_frames import numpy_of
from fastrec._recording_stack import checked_layouts
from fastrec._recording_view import Integers, View
from fastrec._torch.tensors import aside

By = Literal["sample"] | None

SPAN = 16 << 20
"""So many bytes of records are held at once while some of their samples are picked."""


class Rows:
    """An array that lies where it was recorded: ``rows[10:20]`` reads ten rows as a tensor, and no others.

    ``shape``, ``dtype`` and ``nbytes`` are those of the whole; ``np.asarray(rows)`` reads it all. An index is a number,
    a slice, or a list, array or tensor of numbers or of one bool per row; negative numbers count from the end.
    """

    def __init__(self, view: View, key: str, by: By, part: Part | None) -> None:
        if by not in (None, "sample"):
            raise OptionError(f"rows(by={by!r}): there is by='sample', or nothing")
        self._view = view
        self._part, which, layouts = checked_layouts(view, key, part)
        if by == "sample" and any(not shape for shape, _ in layouts):
            raise RaggedError(f"{key!r} has values without dimensions, and so no samples; leave by='sample' out")
        self.by: By = by
        features = list(dict.fromkeys((shape if by is None else shape[1:], dtype) for shape, dtype in layouts))
        if len(features) > 1:
            told = ", ".join(f"{shape} {dtype}" for shape, dtype in features[:6])
            hint = ", by='sample' where the first dimension differs," if by is None else ""
            raise RaggedError(f"{key!r} has values of {told}; give rows(){hint} of a selection of them")
        feature, self.dtype = features[0]
        sizes = np.array([1 if by is None else shape[0] for shape, _ in layouts], np.int64)[which]
        self._stops = None if by is None else np.cumsum(sizes)
        self.shape = (int(sizes.sum()), *feature)

    @property
    def ndim(self) -> int:
        """How many dimensions the whole has."""
        return len(self.shape)

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """The bytes of all rows."""
        return len(self) * self.row_bytes

    @property
    def pass_index(self) -> Integers:
        """The pass that each row comes from."""
        passes: Integers = self._view.passes["pass_index"][self._view.pass_at]
        return passes if self._stops is None else np.repeat(passes, np.diff(self._stops, prepend=0))

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        step = max(1, (1 << 20) // max(1, self.row_bytes))
        for start in range(0, len(self), step):
            yield from self[start : start + step]

    def __getitem__(self, index: int | slice | Sequence[int] | npt.NDArray[Any] | Tensor) -> Tensor:
        if isinstance(index, int | np.integer):
            at = range(len(self))[index]  # an IndexError where there is no such row
            return self.read(at, at + 1)[0]
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self.read(start, max(start, stop))
            return self.pick(np.arange(start, stop, step))
        return self.pick(_positions(index, len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        array = numpy_of(self[:])
        return array if dtype is None else array.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"<Rows: {'x'.join(map(str, self.shape))} {str(self.dtype).removeprefix('torch.')}>"

    def read(self, start: int, stop: int) -> Tensor:
        """Consecutive rows."""
        if self._stops is None:
            return self._records(np.arange(start, stop))
        if start >= stop:
            return self._empty(0)
        first, last = np.searchsorted(self._stops, [start, stop - 1], side="right").tolist()
        before = int(self._stops[first - 1]) if first else 0
        return self._records(np.arange(first, last + 1))[start - before : stop - before]

    def pick(self, at: Integers) -> Tensor:
        """Rows in any order."""
        if self._stops is None:
            return self._records(at)
        out = self._empty(len(at))
        records = np.searchsorted(self._stops, at, side="right")
        order = np.argsort(records, kind="stable")
        for some in _groups(records[order], np.diff(self._stops, prepend=0) * self.row_bytes):
            here = order[some]
            found, inverse = np.unique(records[here], return_inverse=True)
            sizes = np.diff(self._stops, prepend=0)[found]
            places = at[here] - (self._stops[found] - sizes)[inverse] + (np.cumsum(sizes) - sizes)[inverse]
            with aside():
                out[torch.from_numpy(here)] = self._records(found)[torch.from_numpy(places)].detach()
        return out

    def edges(self, nbytes: int) -> Integers:
        """Where to divide the rows into stretches of about so many bytes that are quick to read."""
        if self._stops is None:
            step = max(1, nbytes // max(1, self.row_bytes))
            return np.append(np.arange(0, len(self), step), len(self))
        stretch = (self._stops * self.row_bytes - 1) // max(1, nbytes)
        ends = self._stops[np.flatnonzero(np.diff(stretch, append=stretch[-1:] + 1))]
        return np.unique(np.concatenate([[0], ends]))

    def _records(self, at: Integers) -> Tensor:
        view = self._view
        if not len(at):
            return self._empty(0)
        pieces = view.source.values(view.variants[at], view.rows[at], self._part)
        if self._stops is not None:
            pieces = [piece.reshape(-1, *self.shape[1:]) for piece in pieces]
        if len(pieces) == 1:
            return pieces[0]
        with aside():
            return torch.cat(list(pieces))

    def _empty(self, count: int) -> Tensor:
        with aside():
            return torch.empty((count, *self.shape[1:]), dtype=self.dtype)


def _positions(index: Any, count: int) -> Integers:
    """An index of several rows as numbers from 0 on."""
    at = np.asarray(index.cpu() if isinstance(index, Tensor) else index)
    if at.dtype == np.bool_ and at.shape == (count,):
        return np.flatnonzero(at)
    if at.ndim != 1 or (at.dtype.kind not in "iu" and at.size):
        raise OptionError(f"rows[{index!r:.80}]: give a number, a slice, a list of numbers, or one bool per row")
    at = at.astype(np.int64)
    at = np.where(at < 0, at + count, at)
    if at.size and not 0 <= at.min() <= at.max() < count:
        raise IndexError(f"there are {count} rows, and the index goes from {at.min()} to {at.max()}")
    return at


def _groups(records: Integers, nbytes: Integers) -> Iterator[slice]:
    """Stretches of sorted records that take about ``SPAN`` bytes together, each record counted once."""
    new = np.diff(records, prepend=-1) > 0
    taken = np.cumsum(np.where(new, nbytes[records], 0))
    edges = [0, *(np.flatnonzero(np.diff((taken - 1) // SPAN) > 0) + 1).tolist(), len(records)]
    yield from (slice(a, b) for a, b in zip(edges, edges[1:], strict=False))
