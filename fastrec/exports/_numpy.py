"""NumPy's archives of arrays."""

from __future__ import annotations

import os
import zipfile
from typing import IO, Any

import numpy as np
import torch

from fastrec.exports._contract import Keys, RowOptions, made_whole, read_options, rows_of, stretches
from fastrec.recording._arrays import filled, numpy_of
from fastrec.recording._recording import Recording
from fastrec.recording._rows import Rows


def to_numpy(recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any) -> None:
    """One array per key, and one per step column, ``steps/<name>``; ``numpy.load`` reads them.

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

    bfloat16 and float8, which numpy lacks, become float32.
    """
    rows = rows_of(recording, keys, read_options("numpy", RowOptions, options).by)
    with made_whole(path, ".npz") as part, zipfile.ZipFile(part, "w") as archive:
        for name, own in rows.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                _write(file, own)
        for name in recording.steps:
            with archive.open(f"steps/{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, filled(recording.steps[name]))


def _write(file: IO[bytes], rows: Rows) -> None:
    like: Any = numpy_of(torch.empty(0, dtype=rows.dtype))
    header = {"descr": np.lib.format.dtype_to_descr(like.dtype), "fortran_order": False, "shape": rows.shape}
    np.lib.format.write_array_header_2_0(file, header)
    for some in stretches(rows):
        file.write(numpy_of(rows[some]).tobytes())
