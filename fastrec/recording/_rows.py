"""The values of a key as rows that are read when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from fastrec._errors import OptionError, RaggedError
from fastrec._torch.tensors import outside_torch_modes
from fastrec.recording._arrays import checked_layouts, numpy_of
from fastrec.recording._source import Part
from fastrec.recording._view import Integers, View
from fastrec.statistics.html import values_html
from fastrec.statistics.picture import MAX_ROWS
from fastrec.statistics.values import real_numbers

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

    def _repr_html_(self) -> str:
        # As many as the picture shows, spread over all, unless they are very large.
        count = min(len(self), MAX_ROWS, max(1, SPAN // max(1, self.row_bytes)))
        some = self.pick(np.unique(np.linspace(0, max(0, len(self) - 1), count).astype(np.int64)))
        return values_html(repr(self)[1:-1], real_numbers(some).numpy())

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
            with outside_torch_modes():
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
        pieces = view.source.values(view.meta_numbers[at], view.rows[at], self._part)
        if self._stops is not None:
            pieces = [piece.reshape(-1, *self.shape[1:]) for piece in pieces]
        if len(pieces) == 1:
            return pieces[0]
        with outside_torch_modes():
            return torch.cat(list(pieces))

    def _empty(self, count: int) -> Tensor:
        with outside_torch_modes():
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


STRETCHES = 32
"""So many stretches of a file are mixed at a time."""


class BatchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How batches are made; ``Recording.iter_batches`` describes each option."""

    batch_size: int
    shuffle: bool = False
    seed: int | None = None
    drop_last: bool = False
    buffer_bytes: int = 64 << 20
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        for name in ("batch_size", "buffer_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"iter_batches({name}={value!r}): give a whole number from 1 up")
        seed: Any = self.seed
        if seed is not None and (type(seed) is not int or seed < 0):
            raise OptionError(f"iter_batches(seed={seed!r}): give a whole number from 0 up, or None")
        shard: Any = self.shard
        if not (isinstance(shard, tuple) and len(shard) == 2 and all(type(number) is int for number in shard)):
            raise OptionError(f"iter_batches(shard={shard!r}): give two numbers, (rank, world size)")
        if not 0 <= shard[0] < shard[1]:
            raise OptionError(f"iter_batches(shard={shard!r}): the rank goes from 0 to the world size less 1")
        if self.shuffle and shard[1] > 1 and seed is None:
            raise OptionError("iter_batches(shuffle=True, shard=...): give a seed, the same in all ranks")


class Batches(IterableDataset[Any]):
    """Batches of one key (tensors) or of several (dicts), to be iterated as they are or in a DataLoader.

    ``DataLoader(batches, batch_size=None, num_workers=2)`` reads them in its workers, each a share of the rows. Every
    iteration is an epoch: the order is another one each time, or that of ``seed`` and ``set_epoch``.
    """

    def __init__(self, rows: Rows | Mapping[str, Rows], options: BatchOptions) -> None:
        self._rows = {"": rows} if isinstance(rows, Rows) else dict(rows)
        self._single = isinstance(rows, Rows)
        self._options = options
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order that ``seed`` gives for this epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches():
            yield batch[""] if self._single else batch

    def __repr__(self) -> str:
        count = len(next(iter(self._rows.values())))
        return f"<Batches of {self._options.batch_size} of {count} rows>"

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """Fill a pool with stretches of rows, hand out what makes full batches, and keep the rest for the next."""
        options = self._options
        generator = torch.Generator().manual_seed(self._seed()) if options.shuffle else None
        pool: dict[str, Tensor] = {}
        for some in self._fillings(generator):
            read = {name: [rows.read(a, b).detach() for a, b in some] for name, rows in self._rows.items()}
            with outside_torch_modes():
                pool = {name: torch.cat([*([pool[name]] if pool else []), *parts]) for name, parts in read.items()}
            del read
            count = len(next(iter(pool.values())))
            order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
            whole = count - count % options.batch_size
            for start in range(0, whole, options.batch_size):
                yield _picked(pool, order[start : start + options.batch_size])
            pool = _picked(pool, order[whole:])
        if pool and len(next(iter(pool.values()))) and not options.drop_last:
            yield pool

    def _fillings(self, generator: torch.Generator | None) -> Iterator[list[tuple[int, int]]]:
        """The stretches that are read together, those of this worker and rank alone."""
        worker, (rank, ranks) = get_worker_info(), self._options.shard
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        least = max(1, self._options.buffer_bytes // STRETCHES)
        edges = stretches(list(self._rows.values()), least)
        row_bytes = sum(rows.row_bytes for rows in self._rows.values())
        order = np.arange(len(edges) - 1)
        if generator is not None:
            order = torch.randperm(len(order), generator=generator).numpy()
        # One stretch goes to one share, and each share mixes its own.
        some: list[tuple[int, int]] = []
        nbytes = 0
        for i in order[rank * workers + number :: ranks * workers].tolist():
            some.append((int(edges[i]), int(edges[i + 1])))
            nbytes += (some[-1][1] - some[-1][0]) * row_bytes
            if generator is None or nbytes + least > self._options.buffer_bytes:
                yield some
                some, nbytes = [], 0
        if some:
            yield some

    def _seed(self) -> int:
        """The seed of this epoch, the same in all workers."""
        if self._options.seed is not None:
            return int(np.random.SeedSequence([self._options.seed, self._epoch]).generate_state(1, np.uint64)[0] >> 1)
        worker = get_worker_info()
        return int(torch.randint(1 << 62, ()).item()) if worker is None else worker.seed - worker.id


class RowsDataset(Dataset[Any]):
    """Rows of one key (tensors) or of several (dicts), by number."""

    def __init__(self, rows: Rows | Mapping[str, Rows]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows if isinstance(self._rows, Rows) else next(iter(self._rows.values())))

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Many rows read at once, which is how a DataLoader asks."""
        if isinstance(self._rows, Rows):
            return list(self._rows[list(indices)].detach())
        read = {name: rows[list(indices)].detach() for name, rows in self._rows.items()}
        return [{name: values[i] for name, values in read.items()} for i in range(len(indices))]


def check_together(rows: Mapping[str, Rows]) -> None:
    """Raise RaggedError unless the rows of several keys stand side by side, each from the same pass."""
    (first, expected), *others = rows.items()
    for name, found in others:
        if len(found) != len(expected):
            raise RaggedError(
                f"{first!r} has {len(expected)} rows and {name!r} has {len(found)}, which don't stand side by side; "
                "read them one by one, or of a selection in which each fired as often"
            )
        if not np.array_equal(found.pass_index, expected.pass_index):
            at = int(np.argmax(found.pass_index != expected.pass_index))
            raise RaggedError(
                f"row {at} of {first!r} is of pass {expected.pass_index[at]} and that of {name!r} of pass "
                f"{found.pass_index[at]}, so they don't stand side by side; read them one by one, or of a selection"
            )


def stretches(rows: Sequence[Rows], nbytes: int) -> Integers:
    """Where to divide rows that are read together."""
    widest = max(rows, key=lambda one: one.row_bytes)
    total = sum(one.row_bytes for one in rows)
    return widest.edges(nbytes * widest.row_bytes // total if total else nbytes)


def _picked(pool: Mapping[str, Tensor], at: Tensor) -> dict[str, Tensor]:
    with outside_torch_modes():
        return {name: values[at] for name, values in pool.items()}
