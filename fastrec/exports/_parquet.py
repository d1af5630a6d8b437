"""Parquet: a table with a column per key, in one file or in a folder of files.

Values of one dimension are lists of a fixed size. Those of more are tensors of a fixed shape, as Arrow calls its own
type for them, which Ray Data and pyarrow read back as arrays; readers that don't know it see flat lists.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastrec._errors import OptionError
from fastrec._optional import require
from fastrec.exports._contract import Keys, RowOptions, atomic_output, read_options
from fastrec.exports._row_table import RowTable
from fastrec.recording._recording import Recording
from fastrec.recording._source import Array

ROW_GROUP_BYTES = 32 << 20
"""About how many bytes of values are read and written at a time; a reader takes a row group at once."""

FILE_BYTES = 512 << 20
"""About how large a file of a folder is."""

COMPRESSIONS = ("zstd", "snappy", "lz4", "gzip", "brotli", "none")
"""How columns may be compressed."""

MAX_LIST_NUMBERS = (1 << 31) - 1
"""So many numbers can the list of one row hold."""


class ParquetOptions(RowOptions, frozen=True, kw_only=True):
    """What a row is, and how columns are compressed."""

    compression: str = "zstd"


def to_parquet(recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any) -> None:
    """Write a table with a column per key and a row per record or sample; needs the extra ``parquet``.

    >>> import pyarrow.parquet, torch, fastrec
    >>> from fastrec.exports import to_parquet
    >>> recording = fastrec.record(torch.nn.Linear(4, 2), torch.ones(3, 4), keep_op="linear")
    >>> to_parquet(recording, "linear.parquet", keys={"linear_1": "linear"}, by="sample")
    >>> pyarrow.parquet.read_table("linear.parquet").column_names
    ['pass_index', 'step', 'linear']

    Arguments:
        path: a file that ends in .parquet, or a folder, in which files of about 512 MiB are written.
        keys: see ``export``; also step columns, which stand beside the rows.
        by: None or "sample", as in ``Recording.rows``.
        compression: of the columns: "zstd", "snappy", "lz4", "gzip", "brotli" or "none".

    Each row also has ``pass_index``, ``step`` (-1 where there is none), and, where there is something to tell,
    ``rank``, ``phase``, ``env`` and ``sample_id``. What Arrow lacks becomes what holds the same values: bfloat16 and
    float8 float32, and bool of more than one dimension uint8. Raises RaggedError where the keys did not fire in
    the same passes, and OptionError for complex values.
    """
    given = read_options("parquet", ParquetOptions, options)
    arrow = require("pyarrow", extra="parquet", what="exporting to parquet")
    parquet = require("pyarrow.parquet", extra="parquet", what="exporting to parquet")
    if given.compression not in COMPRESSIONS:
        raise OptionError(f"compression={given.compression!r}: give one of {', '.join(map(repr, COMPRESSIONS))}")
    table = RowTable.of(recording, keys, given.by)
    types = _types(arrow, table)
    with (
        atomic_output(path) as temporary,
        _Files(parquet, temporary, arrow.schema(types), given.compression).writing(
            is_folder=not os.fspath(path).endswith(".parquet")
        ) as files,
    ):
        for start, stop in table.stretches(ROW_GROUP_BYTES):
            columns = table.read(start, stop)
            arrays = [_column(arrow, columns[name], type) for name, type in types]
            files.write(arrow.Table.from_arrays(arrays, schema=arrow.schema(types)), (stop - start) * table.row_bytes)


class _Files:
    """One file, or one after another in a folder."""

    def __init__(self, parquet: Any, path: str, schema: Any, compression: str) -> None:
        self._parquet = parquet
        self._path = path
        self._schema = schema
        self._compression = compression
        self._is_folder = False
        self._count = 0
        self._nbytes = 0
        self._writer: Any = None

    @contextmanager
    def writing(self, *, is_folder: bool) -> Iterator[_Files]:
        """Open the first file, and close the last."""
        self._is_folder = is_folder
        if is_folder:
            os.makedirs(self._path)
        self._open()
        try:
            yield self
        finally:
            self._writer.close()

    def write(self, table: Any, nbytes: int) -> None:
        """Append a row group."""
        if self._is_folder and self._nbytes and self._nbytes + nbytes > FILE_BYTES:
            self._writer.close()
            self._open()
        self._writer.write_table(table, row_group_size=max(1, len(table)))
        self._nbytes += nbytes

    def _open(self) -> None:
        path = os.path.join(self._path, f"part-{self._count:05d}.parquet") if self._is_folder else self._path
        self._writer = self._parquet.ParquetWriter(path, self._schema, compression=self._compression)
        self._count, self._nbytes = self._count + 1, 0


def _types(arrow: Any, table: RowTable) -> list[tuple[str, Any]]:
    """The columns with their types: what tells rows apart first, then the keys."""
    types = [(name, _type(arrow, name, column.shape[1:], column.dtype)) for name, column in table.beside.items()]
    for name, rows in table.rows.items():
        types.append((name, _type(arrow, name, rows.shape[1:], table.dtype_of(name))))
    return types


def _type(arrow: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "O":
        return arrow.string()
    if dtype.kind == "c":
        raise OptionError(f"{name!r} is {dtype}, for which Arrow has no type")
    # pyarrow packs bool in bits, and can't read a tensor of them back.
    element = arrow.uint8() if dtype.kind == "b" and len(shape) > 1 else arrow.from_numpy_dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    if not shape:
        return element
    if count == 0 or count > MAX_LIST_NUMBERS:
        raise OptionError(f"{name!r} has rows of {shape}, which Parquet can't hold")
    return arrow.list_(element, shape[0]) if len(shape) == 1 else arrow.fixed_shape_tensor(element, shape)


def _column(arrow: Any, values: Array, type: Any) -> Any:
    """An array as a column; its memory is used as it is."""
    if values.dtype.kind == "O" or values.ndim == 1:
        return arrow.array(values, type)
    flat = np.ascontiguousarray(values).reshape(-1)
    flat = arrow.array(flat.view(np.uint8) if values.dtype.kind == "b" and values.ndim > 2 else flat)
    if values.ndim == 2:
        return arrow.FixedSizeListArray.from_arrays(flat, type=type)
    return arrow.ExtensionArray.from_storage(type, arrow.FixedSizeListArray.from_arrays(flat, type=type.storage_type))
