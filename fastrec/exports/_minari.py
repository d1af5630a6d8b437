"""Minari: one group per episode, and the spaces of observations and actions."""

from __future__ import annotations

import json
import os
from typing import Any

import h5py
import numpy as np

from fastrec._errors import StepError
from fastrec.exports._contract import Keys, made_whole, read_options
from fastrec.exports._episodes import Array, TransitionOptions, transitions
from fastrec.recording._recording import Recording

LAYOUT = "0.5.0"
"""The version of Minari whose layout this is; later ones read it."""


class MinariOptions(TransitionOptions, frozen=True, kw_only=True):
    """How Minari sees a recording."""

    dataset_id: str = "fastrec/recording-v0"


def to_minari(recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any) -> None:
    """A folder with the episodes, whose ``data`` folder ``minari.MinariDataset`` opens.

    Arguments:
        path: a folder.
        keys: see ``export``; they come to lie in ``episode_0/activations`` and so on, which Minari leaves alone.
        observations, actions: a key of the recording, or a step column.
        rewards: a step column.
        dataset_id: the name that Minari shows.

    An episode of T steps has T + 1 observations in Minari; the last one is not recorded, because the policy does not
    see it, and its predecessor stands there again. An episode that was still open counts as truncated.
    """
    fields = read_options("minari", MinariOptions, options)
    fields.check("minari")
    spaces: dict[str, dict[str, Any]] = {}
    count = steps = 0
    with made_whole(path) as part:
        os.makedirs(os.path.join(part, "data"))
        with h5py.File(os.path.join(part, "data", "main_data.hdf5"), "w", track_order=True) as file:
            for episode in transitions(recording, keys, fields):
                group = file.create_group(f"episode_{count}")
                group.attrs["id"], group.attrs["total_steps"] = count, len(episode)
                group["observations"] = np.concatenate([episode.observations, episode.observations[-1:]])
                for name in ("actions", "rewards", "terminations", "truncations"):
                    group[name] = getattr(episode, name)
                for name, values in episode.activations.items():
                    group[f"activations/{name}"] = values
                for name in ("observations", "actions"):
                    spaces[name] = _joined(spaces.get(name), _space(getattr(episode, name)), name)
                count, steps = count + 1, steps + len(episode)
        told = {
            "dataset_id": fields.dataset_id,
            "minari_version": LAYOUT,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "total_episodes": count,
            "total_steps": steps,
            "observation_space": json.dumps(spaces["observations"]),
            "action_space": json.dumps(spaces["actions"]),
        }
        with open(os.path.join(part, "data", "metadata.json"), "w") as text:
            json.dump(told, text)


def _space(values: Array) -> dict[str, Any]:
    """A space of gymnasium that has all of these values."""
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


def _joined(known: dict[str, Any] | None, space: dict[str, Any], name: str) -> dict[str, Any]:
    if known is None or known == space:
        return space
    if known["type"] == space["type"] == "Discrete":
        start = min(known["start"], space["start"])
        stop = max(one["start"] + one["n"] for one in (known, space))
        return {**space, "start": start, "n": stop - start}
    raise StepError(
        f"the {name} of one episode are of shape {known.get('shape')} and dtype {known['dtype']}, those of another "
        f"{space.get('shape')} {space['dtype']}; select(phase=) one kind"
    )
