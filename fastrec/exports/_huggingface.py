"""Data sets of Hugging Face, in the layout from which SAELens loads cached activations."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import torch

from fastrec._errors import OptionError, RaggedError
from fastrec._optional import require
from fastrec.exports._contract import STRETCH_BYTES, Keys, RowOptions, atomic_output, read_options, rows_of
from fastrec.recording._arrays import numpy_of
from fastrec.recording._recording import Recording
from fastrec.recording._rows import By, Rows, check_same_passes, shared_edges

SHARD_BYTES = 512 << 20
"""About how large a file is."""

MAX_DIMENSIONS = 5
"""Hugging Face has types for arrays of up to five dimensions."""


class HuggingFaceOptions(RowOptions, frozen=True, kw_only=True):
    """What a row is; here a sample by default."""

    by: By = "sample"


def to_huggingface(
    recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any
) -> None:
    """Write a folder that ``datasets.load_from_disk`` reads, with a column per key; needs the extra ``datasets``.

    >>> import torch, fastrec
    >>> from fastrec.exports import to_huggingface
    >>> block = torch.nn.Linear(8, 8)
    >>> recording = fastrec.record(block, torch.ones(16, 32, 8), keep_op="linear")
    >>> to_huggingface(recording, "cached", keys={"linear_1": "blocks.0.hook_resid_post"})

    Arguments:
        path: a folder.
        keys: see ``export``; SAELens expects columns named after its hooks, and tokens named "token_ids".
        by: by default each sample of a batch is one row, which SAELens expects to be [context, d_in]; with None each
            record is one row.

    Where several processes recorded, there is a column ``rank`` too. bfloat16 and float8, which Arrow lacks, become
    float32. Raises RaggedError where the keys did not fire in the same
    passes.
    """
    by = read_options("huggingface", HuggingFaceOptions, options).by
    datasets = require("datasets", extra="datasets", what="exporting to huggingface")
    rows_by_name = rows_of(recording, keys, by)
    check_same_passes(rows_by_name)
    features = datasets.Features({name: _feature(datasets, name, rows) for name, rows in rows_by_name.items()})
    ranks = next(iter(rows_by_name.values())).rank if recording.processes and "rank" not in rows_by_name else None
    if ranks is not None:
        features["rank"] = datasets.Value("int64")
    shards = _shards(list(rows_by_name.values()))
    with atomic_output(path) as temporary:
        os.makedirs(temporary)
        files = [f"data-{i:05d}-of-{len(shards):05d}.arrow" for i in range(len(shards))]
        for name, stretches in zip(files, shards, strict=True):
            shard_path = os.path.join(temporary, name)
            with datasets.arrow_writer.ArrowWriter(features=features, path=shard_path) as writer:
                for start, stop in stretches:
                    batch = {key: numpy_of(rows.read(start, stop)) for key, rows in rows_by_name.items()}
                    writer.write_batch(batch if ranks is None else {**batch, "rank": ranks[start:stop]})
                writer.finalize()
        datasets.DatasetInfo(features=features).write_to_directory(temporary)
        with open(os.path.join(temporary, "state.json"), "w") as file:
            json.dump(_state(files), file)


def _shards(all_rows: Sequence[Rows]) -> list[list[tuple[int, int]]]:
    """The stretches (start, stop) of each file."""
    row_bytes = sum(rows.row_bytes for rows in all_rows)
    rows_per_shard = max(1, SHARD_BYTES // max(1, row_bytes))
    shards: dict[int, list[tuple[int, int]]] = {0: []}  # a data set without rows has a file too
    edges = shared_edges(all_rows, STRETCH_BYTES).tolist()
    for start, stop in zip(edges, edges[1:], strict=False):
        shards.setdefault(start // rows_per_shard, []).append((start, stop))
    return list(shards.values())


def _state(files: Sequence[str]) -> dict[str, Any]:
    """What ``state.json`` says of a data set that nobody has filtered or formatted."""
    return {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": os.urandom(8).hex(),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }


def _feature(datasets: Any, name: str, rows: Rows) -> Any:
    """The data set's type for the rows of a column."""
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
