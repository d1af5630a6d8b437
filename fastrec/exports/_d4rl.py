"""D4RL: the steps of all episodes, one after the other."""

from __future__ import annotations

import os
from typing import Any

import h5py

from fastrec._errors import StepError
from fastrec.exports._contract import Keys, atomic_output, read_options
from fastrec.exports._episodes import TransitionOptions, count_steps, transitions
from fastrec.recording._recording import Recording
from fastrec.recording._source import Array


def to_d4rl(recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any) -> None:
    """Write a file with ``observations``, ``actions``, ``rewards``, ``terminals`` and ``timeouts`` of N rows each.

    Arguments:
        path: a file, which has to end in .hdf5 or .h5.
        keys: see ``export``; their values go into ``infos``.
        observations, actions: a key of the recording, or a step column.
        rewards: a step column.
        autoreset: as in ``recording.episodes``.

    Episodes follow each other in order of their start. One that was still open ends with a timeout.
    Where several processes recorded, ``infos/rank`` has the rank of each row.
    """
    fields = read_options("d4rl", TransitionOptions, options)
    fields.check("d4rl")
    total = count_steps(recording, fields)
    with atomic_output(path, ".hdf5", ".h5") as temporary, h5py.File(temporary, "w") as file:
        start = 0
        for stretch in transitions(recording, keys, fields):
            arrays = {
                "observations": stretch.observations,
                "actions": stretch.actions,
                "rewards": stretch.rewards,
                "terminals": stretch.terminations,
                "timeouts": stretch.truncations,
                **{f"infos/{name}": values for name, values in stretch.activations.items()},
            }
            if stretch.ranks is not None:
                arrays["infos/rank"] = stretch.ranks
            for name, values in arrays.items():
                _write_rows(file, name, values, start, total)
            start += len(stretch)


def _write_rows(file: h5py.File, name: str, values: Array, start: int, total: int) -> None:
    if name not in file:
        file.create_dataset(name, (total, *values.shape[1:]), values.dtype)
    dataset = file[name]
    if dataset.shape[1:] != values.shape[1:] or dataset.dtype != values.dtype:
        raise StepError(
            f"{name!r} has rows of {dataset.shape[1:]} {dataset.dtype} in one phase and of {values.shape[1:]} "
            f"{values.dtype} in another; select(phase=) one kind"
        )
    dataset[start : start + len(values)] = values
