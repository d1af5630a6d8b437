"""Safetensors: the length of a header, the header in JSON, and the bytes of the tensors.

It is written here because the ``safetensors`` package wants whole tensors in memory.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import torch
from torch import Tensor

from fastrec._errors import OptionError
from fastrec.exports._contract import (
    Keys,
    RowAndStepOptions,
    atomic_output,
    columns_of_steps,
    read_options,
    row_slices,
    rows_of,
)
from fastrec.recording._recording import Recording
from fastrec.recording._rows import Rows

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def to_safetensors(
    recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any
) -> None:
    """Write a tensor per key, and one per step column as ``steps/<name>``; ``safetensors.torch.load_file`` reads them.

    >>> import torch, fastrec
    >>> from fastrec.exports import to_safetensors
    >>> recording = fastrec.record(torch.nn.Linear(4, 2), torch.ones(3, 4), keep_op="linear")
    >>> to_safetensors(recording, "linear.safetensors")

    Arguments:
        path: a file, which has to end in .safetensors.
        keys: see ``export``.
        by: None or "sample", as in ``Recording.rows``.
        steps: False leaves the columns out. Without it a key that did not fire once in each step is a StepError.

    Where several processes recorded, ``ranks/<key>`` has the rank of each row and ``steps/rank`` that of each step.
    Raises OptionError for a dtype that the format does not have.
    """
    fields = read_options("safetensors", RowAndStepOptions, options)
    rows = rows_of(recording, keys, fields.by)
    of_steps = columns_of_steps(recording, rows) if fields.steps else {}
    columns = {f"steps/{name}": torch.from_numpy(column) for name, column in of_steps.items()}
    if recording.processes:
        columns.update({f"ranks/{name}": torch.from_numpy(of_key.rank) for name, of_key in rows.items()})
    sources: dict[str, Rows | Tensor] = {**rows, **columns}
    for name, source in sources.items():
        if source.dtype not in DTYPES:
            raise OptionError(f"safetensors has no dtype for {name!r}, which is {source.dtype}")
    # The widest elements first, so that each tensor starts at a multiple of the size of its elements.
    names = sorted(sources, key=lambda name: -sources[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        source = sources[name]
        start, end = end, end + source.nbytes
        header[name] = {"dtype": DTYPES[source.dtype], "shape": list(source.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data behind the header has to begin at a multiple of eight
    with atomic_output(path, ".safetensors") as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            if name in columns:
                file.write(_bytes_of(columns[name]))
                continue
            for stretch in row_slices(rows[name]):
                file.write(_bytes_of(rows[name][stretch]))


def _bytes_of(values: Tensor) -> bytes:
    flat = values.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
