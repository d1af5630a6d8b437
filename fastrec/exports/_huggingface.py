"""Data sets of Hugging Face, in the layout that SAELens loads its cached activations from."""

from __future__ import annotations

import json
import os
from typing import Any

import msgspec
import torch

from fastrec._errors import OptionError, RaggedError
from fastrec._optional import require
from fastrec.exports._contract import STRETCH, Keys, RowOptions, made_whole, read_options, rows_of
from fastrec.recording._arrays import numpy_of
from fastrec.recording._recording import Recording
from fastrec.recording._rows import By, Rows, check_together, stretches

SHARD = 512 << 20

MAX_DIMENSIONS = 5


class _State(msgspec.Struct):
    """What `state.json` tells."""

    files: list[str]

    def text(self) -> str:
        return json.dumps(
            {
                "_data_files": [{"filename": name} for name in self.files],
                "_fingerprint": os.urandom(8).hex(),
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": None,
            }
        )


class HuggingFaceOptions(RowOptions, frozen=True, kw_only=True):
    """What a row is."""

    by: By = "sample"


def to_huggingface(
    recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any
) -> None:
    """A folder that ``datasets.load_from_disk`` reads, with one column per key; needs the extra ``datasets``.

    >>> import torch, fastrec
    >>> from fastrec.exports import to_huggingface
    >>> block = torch.nn.Linear(8, 8)
    >>> recording = fastrec.record(block, torch.ones(16, 32, 8), keep_op="linear")
    >>> to_huggingface(recording, "cached", keys={"linear_1": "blocks.0.hook_resid_post"})

    Arguments:
        path: a folder.
        keys: see ``export``; SAELens wants columns named after its hooks, and tokens named "token_ids".
        by: by default each sample of a batch is one row, which SAELens wants to be [context, d_in]; with None each
            record is.

    bfloat16 and float8, which Arrow lacks, become float32. Raises RaggedError where the keys did not fire in the same
    passes.
    """
    by = read_options("huggingface", HuggingFaceOptions, options).by
    datasets = require("datasets", extra="datasets", what="exporting to huggingface")
    from datasets.arrow_writer import ArrowWriter

    rows = rows_of(recording, keys, by)
    check_together(rows)
    features = datasets.Features({name: _feature(datasets, name, own) for name, own in rows.items()})
    edges = stretches(list(rows.values()), STRETCH).tolist()
    row_bytes = sum(own.row_bytes for own in rows.values())
    per_shard = max(1, SHARD // max(1, row_bytes))
    shards: dict[int, list[tuple[int, int]]] = {0: []}
    for start, stop in zip(edges, edges[1:], strict=False):
        shards.setdefault(start // per_shard, []).append((start, stop))
    with made_whole(path) as part:
        os.makedirs(part)
        state = _State([f"data-{i:05d}-of-{len(shards):05d}.arrow" for i in range(len(shards))])
        for name, pieces in zip(state.files, shards.values(), strict=True):
            with ArrowWriter(features=features, path=os.path.join(part, name)) as writer:
                for start, stop in pieces:
                    writer.write_batch({name: numpy_of(own.read(start, stop)) for name, own in rows.items()})
                writer.finalize()
        datasets.DatasetInfo(features=features).write_to_directory(part)
        with open(os.path.join(part, "state.json"), "w") as file:
            file.write(state.text())


def _feature(datasets: Any, name: str, rows: Rows) -> Any:
    """The type of a column."""
    shape = rows.shape[1:]
    if len(shape) > MAX_DIMENSIONS:
        raise RaggedError(f"{name!r} has rows of {len(shape)} dimensions, and a data set has at most {MAX_DIMENSIONS}")
    dtype = str(numpy_of(torch.empty(0, dtype=rows.dtype)).dtype)
    if dtype.startswith("complex"):
        raise OptionError(f"{name!r} is {dtype}, for which Arrow has no type")
    if not shape:
        return datasets.Value(dtype)
    if len(shape) == 1:
        return datasets.Sequence(datasets.Value(dtype), length=shape[0])
    return getattr(datasets, f"Array{len(shape)}D")(shape=shape, dtype=dtype)
