"""Zarr, version 3: an array per key, in chunks that are read alone and shards that are files.

A chunk is what a reader has to take at once, a shard what a file system or an object store holds: few and large, as a
segment of a recording is. Each is written whole, so a shard is in memory while it is written.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fastrec._optional import require
from fastrec.exports._contract import Keys, RowOptions, atomic_output, read_options
from fastrec.exports._row_table import RowTable
from fastrec.recording._recording import Recording
from fastrec.recording._source import Array

CHUNK_BYTES = 1 << 20
"""About how many bytes of values a chunk has."""

SHARD_BYTES = 128 << 20
"""About how many bytes of values a shard has: as many as a segment of a recording, or so many if that is less."""


def to_zarr(recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any) -> None:
    """Write a group with an array per key; needs the extra ``zarr``, and Python 3.11.

    ::

        to_zarr(recording, "linear.zarr", keys={"linear_1": "linear"}, by="sample")
        zarr.open_group("linear.zarr")["linear"].shape  # (3, 2)

    Arguments:
        path: a folder.
        keys: see ``export``; also step columns, which stand beside the rows.
        by: None or "sample", as in ``Recording.rows``.

    Beside the keys are the arrays ``pass_index``, ``step`` (-1 where there is none), and, where there is something to
    tell, ``rank``, ``phase``, ``env`` and ``sample_id``: row *i* of each belongs to row *i* of the keys. The first axis
    is named "row", as xarray reads it. A name is a number, which counts those in the attribute ``names``. bfloat16 and
    float8, which Zarr lacks, become float32; slashes in names become dots. Raises RaggedError where the keys did not
    fire in the same passes.
    """
    given = read_options("zarr", RowOptions, options)
    zarr = require("zarr", extra="zarr", what="exporting to zarr")
    table = RowTable.of(recording, keys, given.by)
    name_of = zarr_names([*table.beside, *table.rows])
    with atomic_output(path) as temporary:
        group = zarr.create_group(temporary, zarr_format=3)
        for name, column in table.beside.items():
            names, values = _coded(column) if column.dtype.kind == "O" else (None, column)
            array = _create(group, name_of[name], values.shape, values.dtype)
            array[...] = values
            if names is not None:
                array.attrs["names"] = names
        for name, rows in table.rows.items():
            array = _create(group, name_of[name], rows.shape, table.dtype_of(name))
            step = (array.shards or array.chunks)[0]
            for start in range(0, len(rows), step):
                stop = min(start + step, len(rows))
                array[start:stop] = table.read_key(name, start, stop)


def zarr_names(names: list[str]) -> dict[str, str]:
    """Names that are no paths, all different."""
    name_of: dict[str, str] = {}
    for name in names:
        plain = name.replace("/", ".").strip(".") or "root"
        different, number = plain, 2
        while different in name_of.values():
            different, number = f"{plain}#{number}", number + 1
        name_of[name] = different
    return name_of


def _create(group: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """An array whose chunks and shards divide the rows."""
    row_bytes = max(1, np.dtype(dtype).itemsize * int(np.prod(shape[1:], dtype=np.int64)))
    chunk = max(1, min(shape[0], CHUNK_BYTES // row_bytes))
    per_shard = max(1, min(-(-shape[0] // chunk), SHARD_BYTES // (chunk * row_bytes)))
    # Zarr does not take sizes of 0.
    sizes = tuple(max(1, size) for size in shape[1:])
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(chunk, *sizes),
        shards=(chunk * per_shard, *sizes) if per_shard > 1 else None,
        dimension_names=["row", *(f"{name}_{i}" for i in range(1, len(shape)))],
    )


def _coded(column: Array) -> tuple[list[str], Array]:
    """Names, and for each row which of them it has, -1 for none: version 3 of Zarr has no type for text yet."""
    names = list(dict.fromkeys(value for value in column if value is not None))
    number_of = {name: number for number, name in enumerate(names)}
    return names, np.array([number_of.get(value, -1) for value in column], np.int64)
