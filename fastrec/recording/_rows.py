"""The values of keys as rows that are read when they are indexed, and as batches and data sets for training.

``Rows`` is an array that stays where it was recorded. ``Batches`` and ``RowsDataset`` read one or several of them, side
by side, for torch's ``DataLoader``. A file is fast to read in long stretches and slow to read row by row, so shuffled
batches read stretches in random order and shuffle within what is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from fastrec._errors import OptionError, RaggedError
from fastrec._torch.tensors import outside_torch_modes
from fastrec.events.sites import SampleId
from fastrec.recording._arrays import checked_layouts, numpy_of, real_array
from fastrec.recording._labels import RowLabels
from fastrec.recording._source import Array, Integers, Part
from fastrec.recording._steps import Steps
from fastrec.recording._view import View
from fastrec.report.html import values_html
from fastrec.report.picture import MAX_ROWS

By = Literal["sample"] | None

MAX_PICK_BYTES = 16 << 20
"""About how many bytes of records are in memory at once while some of their samples are picked."""

ITERATION_BYTES = 1 << 20
"""About how many bytes are read at once when rows are iterated over."""

MIXED_STRETCHES = 32
"""How many stretches of a file are shuffled together."""


class Rows:
    """An array that lies where it was recorded: ``rows[10:20]`` reads ten rows as a tensor, and no others.

    ``shape``, ``dtype`` and ``nbytes`` are those of the whole; ``np.asarray(rows)`` reads it all. An index is a number,
    a slice, or a list, array or tensor of numbers or of one bool per row; negative numbers count from the end.
    ``step``, ``env``, ``episode``, ``rank``, ``sample_id`` and ``column(name)`` tell what each row belongs to.
    """

    def __init__(self, view: View, key: str, by: By, part: Part | None, steps: Steps | None = None) -> None:
        if by not in (None, "sample"):
            raise OptionError(f"rows(by={by!r}): give by='sample', or leave it out for one row per record")
        self._view = view
        self._part, layout_numbers, layouts = checked_layouts(view, key, part)
        if by == "sample" and any(not shape for shape, _ in layouts):
            raise RaggedError(f"{key!r} has values without dimensions, and so no samples; leave by='sample' out")
        self.by: By = by
        row_layouts = list(dict.fromkeys((shape if by is None else shape[1:], dtype) for shape, dtype in layouts))
        if len(row_layouts) > 1:
            shapes = ", ".join(f"{shape} {dtype}" for shape, dtype in row_layouts[:6])
            remedy = ", by='sample' where the first dimension differs," if by is None else ""
            raise RaggedError(f"{key!r} has values of {shapes}; give rows(){remedy} of a selection of them")
        row_shape, self.dtype = row_layouts[0]
        rows_per_layout = np.array([1 if by is None else shape[0] for shape, _ in layouts], np.int64)
        sizes: Integers = rows_per_layout[layout_numbers]
        self._stops = None if by is None else np.cumsum(sizes)
        self._steps = steps or Steps((), ())
        self.shape = (int(sizes.sum()), *row_shape)

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

    @cached_property
    def labels(self) -> RowLabels:
        """What stands beside the rows."""
        return RowLabels(self._view, None if self._stops is None else np.diff(self._stops, prepend=0), self._steps)

    @property
    def pass_index(self) -> Integers:
        """The pass that each row comes from."""
        return self.labels.pass_index

    @property
    def step(self) -> Integers:
        """The step of each row, within its phase; -1 where it belongs to none."""
        return self.labels.step

    @property
    def env(self) -> Integers:
        """The environment of each row, with ``by="sample"``; -1 where a value has not one row per environment."""
        return self.labels.env

    @property
    def episode(self) -> Integers:
        """The number of the episode of each row in ``recording.episodes()``; -1 where it belongs to none."""
        return self.labels.episode

    @property
    def rank(self) -> Integers:
        """The rank of the process of each row; -1 where it is not known or only one process recorded."""
        return self.labels.rank

    @property
    def sample_id(self) -> list[SampleId | None]:
        """The sample id of each row's pass, or its own where the pass has one for each sample of the batch."""
        return self.labels.sample_id

    def column(self, name: str) -> Array:
        """A step column, with one value per row; with ``by="sample"`` its first axis counts samples.

        Raises StepError where a row has no value that can't be NaN, or a step has more or fewer values than samples.
        """
        return self.labels.column(name)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        step = max(1, ITERATION_BYTES // max(1, self.row_bytes))
        for start in range(0, len(self), step):
            yield from self[start : start + step]

    def __getitem__(self, index: int | slice | Sequence[int] | Array | Tensor) -> Tensor:
        if isinstance(index, int | np.integer):
            row = range(len(self))[index]  # an IndexError where there is no such row
            return self.read(row, row + 1)[0]
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self.read(start, max(start, stop))
            return self.pick(np.arange(start, stop, step))
        return self.pick(_row_numbers(index, len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        array = numpy_of(self[:])
        return array if dtype is None else array.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"<Rows: {'x'.join(map(str, self.shape))} {str(self.dtype).removeprefix('torch.')}>"

    def _repr_html_(self) -> str:
        # As many as the picture shows, spread over all, unless they are very large.
        count = min(len(self), MAX_ROWS, max(1, ITERATION_BYTES // max(1, self.row_bytes)))
        some = self.pick(np.unique(np.linspace(0, max(0, len(self) - 1), count).astype(np.int64)))
        return values_html(repr(self)[1:-1], real_array(some))

    def read(self, start: int, stop: int) -> Tensor:
        """Consecutive rows."""
        if self._stops is None:
            return self._read_records(np.arange(start, stop))
        if start >= stop:
            return self._empty(0)
        first, last = np.searchsorted(self._stops, [start, stop - 1], side="right").tolist()
        offset = int(self._stops[first - 1]) if first else 0
        return self._read_records(np.arange(first, last + 1))[start - offset : stop - offset]

    def pick(self, rows: Integers) -> Tensor:
        """Rows in any order."""
        if self._stops is None:
            return self._read_records(rows)
        sizes = np.diff(self._stops, prepend=0)
        picked = self._empty(len(rows))
        records = np.searchsorted(self._stops, rows, side="right")
        order = np.argsort(records, kind="stable")  # each record is read once, however many of its rows are picked
        for group in _groups(records[order], sizes * self.row_bytes):
            targets = order[group]
            numbers, inverse = np.unique(records[targets], return_inverse=True)
            offsets_in_record = rows[targets] - (self._stops[numbers] - sizes[numbers])[inverse]
            record_starts = np.cumsum(sizes[numbers]) - sizes[numbers]
            sources = record_starts[inverse] + offsets_in_record
            with outside_torch_modes():
                values = self._read_records(numbers)[torch.from_numpy(sources)].detach()
                picked[torch.from_numpy(targets)] = values
        return picked

    def edges(self, nbytes: int) -> Integers:
        """Where to divide the rows into stretches of about so many bytes, none of which begins inside a record."""
        if self._stops is None:
            step = max(1, nbytes // max(1, self.row_bytes))
            return np.append(np.arange(0, len(self), step), len(self))
        stretch = (self._stops * self.row_bytes - 1) // max(1, nbytes)
        ends = self._stops[np.flatnonzero(np.diff(stretch, append=stretch[-1:] + 1))]
        return np.unique(np.concatenate([[0], ends]))

    def _read_records(self, positions: Integers) -> Tensor:
        """The rows of whole records, by their positions in the view."""
        view = self._view
        if not len(positions):
            return self._empty(0)
        pieces = view.source.values(view.meta_numbers[positions], view.rows[positions], self._part)
        if self._stops is not None:
            pieces = [piece.reshape(-1, *self.shape[1:]) for piece in pieces]
        if len(pieces) == 1:
            return pieces[0]
        with outside_torch_modes():
            return torch.cat(list(pieces))

    def _empty(self, count: int) -> Tensor:
        with outside_torch_modes():
            return torch.empty((count, *self.shape[1:]), dtype=self.dtype)


def _row_numbers(index: Any, count: int) -> Integers:
    """An index of several rows as numbers from 0 on."""
    rows = np.asarray(index.cpu() if isinstance(index, Tensor) else index)
    if rows.dtype == np.bool_ and rows.shape == (count,):
        return np.flatnonzero(rows)
    if rows.ndim != 1 or (rows.dtype.kind not in "iu" and rows.size):
        raise OptionError(f"rows[{index!r:.80}]: give a number, a slice, a list of numbers, or one bool per row")
    rows = rows.astype(np.int64)
    rows = np.where(rows < 0, rows + count, rows)
    if rows.size and not 0 <= rows.min() <= rows.max() < count:
        raise IndexError(f"there are {count} rows, and the index goes from {rows.min()} to {rows.max()}")
    return rows


def _groups(records: Integers, nbytes: Integers) -> Iterator[slice]:
    """Divide sorted records into groups of about ``MAX_PICK_BYTES``; a record that is there twice counts once."""
    is_first = np.diff(records, prepend=-1) > 0
    total = np.cumsum(np.where(is_first, nbytes[records], 0))
    edges = [0, *(np.flatnonzero(np.diff((total - 1) // MAX_PICK_BYTES) > 0) + 1).tolist(), len(records)]
    yield from (slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False))


class Beside:
    """Values in memory that are read beside rows: one for each row. ``names`` are what whole numbers stand for.

    ``row_bytes``, ``edges``, ``read`` and an index of several rows are those of ``Rows``.
    """

    def __init__(self, rows: Rows, values: Tensor, names: Sequence[Any] | None = None) -> None:
        self._rows = rows
        self._values = values
        self._names = names

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return self._values.element_size() * math.prod(self._values.shape[1:])

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        with outside_torch_modes():
            return self._values[torch.as_tensor(rows)]

    def read(self, start: int, stop: int) -> Tensor:
        """Consecutive rows."""
        with outside_torch_modes():
            return self._values[start:stop]

    def edges(self, nbytes: int) -> Integers:
        """Where to divide the rows, as the rows that they stand beside."""
        return self._rows.edges(max(1, nbytes * self._rows.row_bytes // max(1, self.row_bytes)))

    def named(self, values: Tensor) -> Any:
        """What the user gets for values that were read."""
        return values if self._names is None else [self._names[code] for code in values.tolist()]


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

    def __init__(self, rows: Rows | Mapping[str, Rows | Beside], options: BatchOptions) -> None:
        self._rows: dict[str, Rows | Beside] = {"": rows} if isinstance(rows, Rows) else dict(rows)
        self._has_one_key = isinstance(rows, Rows)
        self._options = options
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order that ``seed`` gives for this epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches():
            yield batch[""] if self._has_one_key else _named(batch, self._rows)

    def __repr__(self) -> str:
        count = len(next(iter(self._rows.values())))
        return f"<Batches of {self._options.batch_size} of {count} rows>"

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """Fill a pool with stretches of rows, hand out as many full batches as it has, and keep the rest in it."""
        options = self._options
        generator = torch.Generator().manual_seed(self._epoch_seed()) if options.shuffle else None
        pool: dict[str, Tensor] = {}
        for stretches in self._stretch_groups(generator):
            parts = {name: [rows.read(*stretch).detach() for stretch in stretches] for name, rows in self._rows.items()}
            with outside_torch_modes():
                pool = {name: torch.cat([*([pool[name]] if pool else []), *tensors]) for name, tensors in parts.items()}
            del parts  # else the stretches would be in memory twice while batches are handed out
            count = len(next(iter(pool.values())))
            order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
            stop = count - count % options.batch_size
            for start in range(0, stop, options.batch_size):
                yield _take_rows(pool, order[start : start + options.batch_size])
            pool = _take_rows(pool, order[stop:])
        if pool and len(next(iter(pool.values()))) and not options.drop_last:
            yield pool

    def _stretch_groups(self, generator: torch.Generator | None) -> Iterator[list[tuple[int, int]]]:
        """The stretches (start, stop) that are in the pool together, those of this worker and rank alone."""
        worker, (rank, world_size) = get_worker_info(), self._options.shard
        n_workers, worker_id = (1, 0) if worker is None else (worker.num_workers, worker.id)
        stretch_bytes = max(1, self._options.buffer_bytes // MIXED_STRETCHES)
        edges = shared_edges(list(self._rows.values()), stretch_bytes)
        row_bytes = sum(rows.row_bytes for rows in self._rows.values())
        order = np.arange(len(edges) - 1)
        if generator is not None:
            order = torch.randperm(len(order), generator=generator).numpy()
        group: list[tuple[int, int]] = []
        nbytes = 0
        # A stretch goes to one worker of one rank as a whole, and each worker shuffles within its own stretches.
        for i in order[rank * n_workers + worker_id :: world_size * n_workers].tolist():
            start, stop = int(edges[i]), int(edges[i + 1])
            group.append((start, stop))
            nbytes += (stop - start) * row_bytes
            if generator is None or nbytes + stretch_bytes > self._options.buffer_bytes:
                yield group
                group, nbytes = [], 0
        if group:
            yield group

    def _epoch_seed(self) -> int:
        """The seed of this epoch, the same in all workers."""
        if self._options.seed is not None:
            return int(np.random.SeedSequence([self._options.seed, self._epoch]).generate_state(1, np.uint64)[0] >> 1)
        worker = get_worker_info()
        # A DataLoader draws one seed per epoch, and gives worker n that seed plus n.
        return int(torch.randint(1 << 62, ()).item()) if worker is None else worker.seed - worker.id


def _take_rows(pool: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    with outside_torch_modes():
        return {name: values[rows] for name, values in pool.items()}


def _named(values: Mapping[str, Tensor], rows: Mapping[str, Rows | Beside]) -> dict[str, Any]:
    """Values of rows with what stands for them where they are numbers of names."""
    return {
        name: beside.named(values[name]) if isinstance(beside, Beside) else values[name]
        for name, beside in rows.items()
    }


class RowsDataset(Dataset[Any]):
    """Rows of one key (tensors) or of several (dicts), by number."""

    def __init__(self, rows: Rows | Mapping[str, Rows | Beside]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows if isinstance(self._rows, Rows) else next(iter(self._rows.values())))

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Many rows read at once, which is how a DataLoader asks."""
        if isinstance(self._rows, Rows):
            return list(self._rows[list(indices)].detach())
        columns = _named({name: rows[list(indices)].detach() for name, rows in self._rows.items()}, self._rows)
        return [{name: values[i] for name, values in columns.items()} for i in range(len(indices))]


def check_same_passes(rows_by_key: Mapping[str, Rows]) -> None:
    """Raise RaggedError unless row i of every key comes from the same pass."""
    (first_key, expected), *others = rows_by_key.items()
    for key, rows in others:
        if len(rows) != len(expected):
            raise RaggedError(
                f"{first_key!r} has {len(expected)} rows and {key!r} has {len(rows)}, which don't stand side by side; "
                "read them one by one, or from a selection in which each fired as often"
            )
        if not np.array_equal(rows.pass_index, expected.pass_index):
            row = int(np.argmax(rows.pass_index != expected.pass_index))
            raise RaggedError(
                f"row {row} of {first_key!r} is of pass {expected.pass_index[row]} and that of {key!r} of pass "
                f"{rows.pass_index[row]}, so they don't stand side by side; read them one by one, or from a selection"
            )


def shared_edges(all_rows: Sequence[Rows | Beside], nbytes: int) -> Integers:
    """Where to divide rows that are read together into stretches of about so many bytes in all."""
    widest = max(all_rows, key=lambda rows: rows.row_bytes)
    total = sum(rows.row_bytes for rows in all_rows)
    return widest.edges(nbytes * widest.row_bytes // total if total else nbytes)
