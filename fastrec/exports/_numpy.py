"""NumPy's archive of arrays, written member by member because ``numpy.savez`` wants whole arrays."""

from __future__ import annotations

import os
import zipfile
from typing import IO, Any

import numpy as np
import torch

from fastrec.exports._contract import (
    Keys,
    RowAndStepOptions,
    atomic_output,
    columns_of_steps,
    read_options,
    row_slices,
    rows_of,
)
from fastrec.recording._arrays import numpy_of
from fastrec.recording._recording import Recording
from fastrec.recording._rows import Rows


def to_numpy(recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any) -> None:
    """Write an array per key, and one per step column as ``steps/<name>``; ``numpy.load`` reads them.

    >>> import numpy, torch, fastrec
    >>> from fastrec.exports import to_numpy
    >>> recording = fastrec.record(torch.nn.Linear(4, 2), torch.ones(3, 4), keep_op="linear")
    >>> to_numpy(recording, "linear.npz")
    >>> numpy.load("linear.npz")["/linear"].shape
    (1, 3, 2)

    Arguments:
        path: a file, which has to end in .npz.
        keys: see ``export``.
        by: None or "sample", as in ``Recording.rows``.
        steps: False leaves the columns out. Without it a key that did not fire once in each step is a StepError.

    Where several processes recorded, ``ranks/<key>`` has the rank of each row and ``steps/rank`` that of each step.
    bfloat16 and float8, which numpy lacks, become float32.
    """
    fields = read_options("numpy", RowAndStepOptions, options)
    rows_by_name = rows_of(recording, keys, fields.by)
    columns = columns_of_steps(recording, rows_by_name) if fields.steps else {}
    with atomic_output(path, ".npz") as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, rows in rows_by_name.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                _write(file, rows)
            if recording.processes:
                with archive.open(f"ranks/{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, rows.rank)
        for name, column in columns.items():
            with archive.open(f"steps/{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, column)


def _write(file: IO[bytes], rows: Rows) -> None:
    like: Any = numpy_of(torch.empty(0, dtype=rows.dtype))
    header = {"descr": np.lib.format.dtype_to_descr(like.dtype), "fortran_order": False, "shape": rows.shape}
    np.lib.format.write_array_header_2_0(file, header)
    for stretch in row_slices(rows):
        file.write(numpy_of(rows[stretch]).tobytes())
