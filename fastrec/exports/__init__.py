"""Recordings in the formats of other tools, one file per format.

    from fastrec.exports import export, to_numpy

    to_numpy(recording, "run.npz", keys=["1/relu"])
    export(recording, "run.npz", "numpy", keys=["1/relu"])  # the same by name

``EXPORTERS`` holds the functions by name, and ``OPTIONS`` the structs of their options. A new format is a function
``exporter(recording, path, *, keys=None, **options)`` that writes to a path where nothing is yet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from fastrec._errors import OptionError, did_you_mean
from fastrec.exports._contract import Exporter as Exporter
from fastrec.exports._contract import Keys as Keys
from fastrec.exports._contract import RowAndStepOptions as RowAndStepOptions
from fastrec.exports._contract import RowOptions as RowOptions
from fastrec.exports._d4rl import to_d4rl as to_d4rl
from fastrec.exports._episodes import TransitionOptions as TransitionOptions
from fastrec.exports._huggingface import HuggingFaceOptions as HuggingFaceOptions
from fastrec.exports._huggingface import to_huggingface as to_huggingface
from fastrec.exports._minari import MinariOptions as MinariOptions
from fastrec.exports._minari import to_minari as to_minari
from fastrec.exports._numpy import to_numpy as to_numpy
from fastrec.exports._parquet import ParquetOptions as ParquetOptions
from fastrec.exports._parquet import to_parquet as to_parquet
from fastrec.exports._robomimic import RobomimicOptions as RobomimicOptions
from fastrec.exports._robomimic import to_robomimic as to_robomimic
from fastrec.exports._safetensors import to_safetensors as to_safetensors
from fastrec.exports._zarr import to_zarr as to_zarr
from fastrec.recording._recording import Recording

EXPORTERS: Mapping[str, Exporter] = {
    "numpy": to_numpy,
    "safetensors": to_safetensors,
    "parquet": to_parquet,
    "zarr": to_zarr,
    "huggingface": to_huggingface,
    "minari": to_minari,
    "d4rl": to_d4rl,
    "robomimic": to_robomimic,
}
"""The function of each format."""

OPTIONS: Mapping[str, type[msgspec.Struct]] = {
    "numpy": RowAndStepOptions,
    "safetensors": RowAndStepOptions,
    "parquet": ParquetOptions,
    "zarr": RowOptions,
    "huggingface": HuggingFaceOptions,
    "minari": MinariOptions,
    "d4rl": TransitionOptions,
    "robomimic": RobomimicOptions,
}
"""The options of each format, as a struct."""


def export(
    recording: Recording, path: str | os.PathLike[str], format: str, *, keys: Keys | None = None, **options: Any
) -> None:
    """Write a recording in another format.

    >>> import torch, fastrec
    >>> from fastrec.exports import export
    >>> recording = fastrec.record(torch.nn.Linear(4, 2), torch.ones(3, 4), keep_op="linear")
    >>> export(recording, "activations.safetensors", "safetensors", keys=["linear_1"])

    Arguments:
        recording: what to write.
        path: a path where nothing is yet.
        format: one of ``EXPORTERS``: "numpy", "safetensors", "parquet", "zarr", "huggingface", "minari", "d4rl",
            "robomimic".
        keys: addresses, sites or labels, or a mapping from them to the names that they get; by default all sites.
        options: those of the format; its function describes them.

    Raises OptionError for an unknown format or option, RecordingExistsError where there is something at the path, and
    what reading the keys raises.
    """
    exporter = EXPORTERS.get(format)
    if exporter is None:
        raise OptionError(f"there is no format {format!r}; {did_you_mean(format, EXPORTERS)}")
    exporter(recording, path, keys=keys, **options)
