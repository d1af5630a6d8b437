"""Batches of rows for training: read in large stretches, shuffled in memory that is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from fastrec._errors import OptionError, RaggedError
from fastrec._recording_rows import Rows
from fastrec._recording_view import Integers
from fastrec._torch.tensors import aside

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
            with aside():
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
    with aside():
        return {name: values[at] for name, values in pool.items()}
