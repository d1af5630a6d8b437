"""D4RL: all steps of all episodes one after the other."""

from __future__ import annotations

import os
from typing import Any

import h5py

from fastrec._errors import StepError
from fastrec.exports._contract import Keys, made_whole, read_options
from fastrec.exports._episodes import Array, TransitionOptions, transitions
from fastrec.recording._recording import Recording


def to_d4rl(recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any) -> None:
    """A file with ``observations``, ``actions``, ``rewards``, ``terminals`` and ``timeouts`` of N rows each.

    Arguments:
        path: a file, which has to end in .hdf5 or .h5.
        keys: see ``export``; they come to lie in ``infos``.
        observations, actions: a key of the recording, or a step column.
        rewards: a step column.

    Episodes stand one after the other, environment by environment. One that was still open ends with a timeout.
    """
    fields = read_options("d4rl", TransitionOptions, options)
    fields.check("d4rl")
    total = sum(len(episode) for episode in recording.episodes())
    with made_whole(path, ".hdf5", ".h5") as part, h5py.File(part, "w") as file:
        done = 0
        for episode in transitions(recording, keys, fields):
            arrays = {
                "observations": episode.observations,
                "actions": episode.actions,
                "rewards": episode.rewards,
                "terminals": episode.terminations,
                "timeouts": episode.truncations,
                **{f"infos/{name}": values for name, values in episode.activations.items()},
            }
            for name, values in arrays.items():
                _append(file, name, values, done, total)
            done += len(episode)


def _append(file: h5py.File, name: str, values: Array, done: int, total: int) -> None:
    if name not in file:
        file.create_dataset(name, (total, *values.shape[1:]), values.dtype)
    made = file[name]
    if made.shape[1:] != values.shape[1:] or made.dtype != values.dtype:
        raise StepError(
            f"{name!r} has rows of {made.shape[1:]} {made.dtype} in one episode and of {values.shape[1:]} "
            f"{values.dtype} in another; select(phase=) one kind"
        )
    made[done : done + len(values)] = values
