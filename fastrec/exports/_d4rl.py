"""D4RL: the steps of all episodes, one after the other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from fastrec._errors import StepError
from fastrec.exports._contract import STRETCH_BYTES, Keys, atomic_output, read_options
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
        table = _Table(file, total)
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
            table.append(arrays)
        table.flush()


class _Table:
    """Data sets of N rows each, written many rows at a time: a write of a few rows takes longer than their copying."""

    def __init__(self, file: h5py.File, total: int) -> None:
        self._file, self._total = file, total
        self._start = self._nbytes = 0
        self._parts: dict[str, list[Array]] = {}

    def append(self, arrays: Mapping[str, Array]) -> None:
        """Add the rows of an episode."""
        for name, values in arrays.items():
            if name not in self._parts:
                self._file.create_dataset(name, (self._total, *values.shape[1:]), values.dtype)
                self._parts[name] = []
            shape, dtype = self._layout(name)
            if shape != values.shape[1:] or dtype != values.dtype:
                raise StepError(
                    f"{name!r} has rows of {shape} {dtype} in one episode and of {values.shape[1:]} "
                    f"{values.dtype} in another; select(phase=) one kind"
                )
            self._parts[name].append(values)
            self._nbytes += values.nbytes
        if self._nbytes > STRETCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that were added."""
        count = 0
        for name, parts in self._parts.items():
            if parts:
                values = np.concatenate(parts)
                count = len(values)
                self._file[name][self._start : self._start + count] = values
                parts.clear()
        self._start, self._nbytes = self._start + count, 0

    def _layout(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        parts = self._parts[name]
        if parts:
            return parts[0].shape[1:], parts[0].dtype
        dataset = self._file[name]
        return dataset.shape[1:], dataset.dtype
