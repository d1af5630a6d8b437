"""D4RL: the steps of all episodes, one after the other."""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np

from fastrec._errors import StepError
from fastrec.exports._contract import Keys, atomic_output, read_options
from fastrec.exports._episodes import TransitionOptions, transitions
from fastrec.recording._recording import Recording
from fastrec.recording._source import Array


def to_d4rl(recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any) -> None:
    """Write a file with ``observations``, ``actions``, ``rewards``, ``terminals`` and ``timeouts`` of N rows each.

    Arguments:
        path: a file, which has to end in .hdf5 or .h5.
        keys: see ``export``; their values go into ``infos``.
        observations, actions: a key of the recording, or a step column.
        rewards: a step column.

    Episodes follow each other environment by environment. One that was still open ends with a timeout.
    Where several processes recorded, ``infos/rank`` has the rank of each row.
    """
    fields = read_options("d4rl", TransitionOptions, options)
    fields.check("d4rl")
    total = sum(len(episode) for episode in recording.episodes(autoreset=fields.autoreset))
    with atomic_output(path, ".hdf5", ".h5") as temporary, h5py.File(temporary, "w") as file:
        start = 0
        for episode in transitions(recording, keys, fields):
            arrays = {
                "observations": episode.observations,
                "actions": episode.actions,
                "rewards": episode.rewards,
                "terminals": episode.terminations,
                "timeouts": episode.truncations,
                **{f"infos/{name}": values for name, values in episode.activations.items()},
            }
            if episode.rank is not None:
                arrays["infos/rank"] = np.full(len(episode), episode.rank, np.int64)
            for name, values in arrays.items():
                _write_rows(file, name, values, start, total)
            start += len(episode)


def _write_rows(file: h5py.File, name: str, values: Array, start: int, total: int) -> None:
    if name not in file:
        file.create_dataset(name, (total, *values.shape[1:]), values.dtype)
    dataset = file[name]
    if dataset.shape[1:] != values.shape[1:] or dataset.dtype != values.dtype:
        raise StepError(
            f"{name!r} has rows of {dataset.shape[1:]} {dataset.dtype} in one episode and of {values.shape[1:]} "
            f"{values.dtype} in another; select(phase=) one kind"
        )
    dataset[start : start + len(values)] = values
