"""Minari: a group per episode, and the spaces of observations and actions."""

from __future__ import annotations

import json
import os
from typing import Any

import h5py
import numpy as np

from fastrec._errors import StepError
from fastrec.exports._contract import Keys, atomic_output, read_options
from fastrec.exports._episodes import TransitionOptions, episodes_of, transitions
from fastrec.recording._recording import Recording
from fastrec.recording._source import Array

MINARI_VERSION = "0.5.0"
"""The version of Minari whose layout is written; later versions read it."""


class MinariOptions(TransitionOptions, frozen=True, kw_only=True):
    """Where Minari's arrays come from, and the name of the data set."""

    dataset_id: str = "fastrec/recording-v0"


def to_minari(recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any) -> None:
    """Write a folder of episodes, whose ``data`` folder ``minari.MinariDataset`` opens.

    Arguments:
        path: a folder.
        keys: see ``export``; their values go into ``episode_0/activations`` and so on, which Minari ignores.
        observations, actions: a key of the recording, or a step column.
        rewards: a step column.
        autoreset: as in ``recording.episodes``.
        dataset_id: the name that Minari shows.

    An episode of T steps has T + 1 observations in Minari. The last one was not recorded, because the policy does not
    see it, so the one before stands there again. An episode that was still open counts as truncated. Where several
    processes recorded, each group has the attribute ``rank``.
    """
    fields = read_options("minari", MinariOptions, options)
    fields.check("minari")
    spaces: dict[str, dict[str, Any]] = {}
    n_episodes = n_steps = 0
    with atomic_output(path) as temporary:
        os.makedirs(os.path.join(temporary, "data"))
        with h5py.File(os.path.join(temporary, "data", "main_data.hdf5"), "w", track_order=True) as file:
            for episode in episodes_of(transitions(recording, keys, fields)):
                group = file.create_group(f"episode_{n_episodes}")
                group.attrs["id"], group.attrs["total_steps"] = n_episodes, len(episode)
                if episode.ranks is not None:
                    group.attrs["rank"] = int(episode.ranks[0])
                group["observations"] = np.concatenate([episode.observations, episode.observations[-1:]])
                for name in ("actions", "rewards", "terminations", "truncations"):
                    group[name] = getattr(episode, name)
                for name, values in episode.activations.items():
                    group[f"activations/{name}"] = values
                for name in ("observations", "actions"):
                    spaces[name] = _merge_spaces(spaces.get(name), _space(getattr(episode, name)), name)
                n_episodes, n_steps = n_episodes + 1, n_steps + len(episode)
        metadata = {
            "dataset_id": fields.dataset_id,
            "minari_version": MINARI_VERSION,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "total_episodes": n_episodes,
            "total_steps": n_steps,
            "observation_space": json.dumps(spaces["observations"]),
            "action_space": json.dumps(spaces["actions"]),
        }
        with open(os.path.join(temporary, "data", "metadata.json"), "w") as text:
            json.dump(metadata, text)


def _space(values: Array) -> dict[str, Any]:
    """A space of Gymnasium that contains these values."""
    shape, dtype = values.shape[1:], values.dtype
    if dtype.kind in "iu" and not shape:
        low = int(values.min())
        start = min(low, 0)
        return {"type": "Discrete", "dtype": "int64", "start": start, "n": int(values.max()) - start + 1}
    limits: tuple[Any, Any] = (-np.inf, np.inf)
    if dtype.kind in "iu":
        limits = (np.iinfo(dtype).min, np.iinfo(dtype).max)
    elif dtype.kind == "b":
        limits = (0, 1)
    bounds = {name: np.full(shape, bound).tolist() for name, bound in zip(("low", "high"), limits, strict=True)}
    return {"type": "Box", "dtype": str(dtype), "shape": list(shape), **bounds}


def _merge_spaces(first: dict[str, Any] | None, second: dict[str, Any], name: str) -> dict[str, Any]:
    if first is None or first == second:
        return second
    if first["type"] == second["type"] == "Discrete":
        start = min(first["start"], second["start"])
        stop = max(space["start"] + space["n"] for space in (first, second))
        return {**second, "start": start, "n": stop - start}
    raise StepError(
        f"the {name} of one episode are of shape {first.get('shape')} and dtype {first['dtype']}, those of another "
        f"{second.get('shape')} {second['dtype']}; select(phase=) one kind"
    )
