"""robomimic: one group per demonstration."""

from __future__ import annotations

import json
import os
from typing import Any

import h5py

from fastrec.exports._contract import Keys, made_whole, read_options
from fastrec.exports._episodes import TransitionOptions, transitions
from fastrec.recording._recording import Recording

GYM_ENV = 2
"""The number that robomimic has for environments of gym."""


class RobomimicOptions(TransitionOptions, frozen=True, kw_only=True):
    """How robomimic sees a recording."""

    env_name: str = ""


def to_robomimic(
    recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any
) -> None:
    """A file with ``data/demo_0`` and so on, which robomimic's ``SequenceDataset`` opens.

    Arguments:
        path: a file, which has to end in .hdf5 or .h5.
        keys: see ``export``; each is an observation of its own, ``obs/act_<name>``.
        observations, actions: a key of the recording, or a step column; they become ``obs/observations`` and
            ``actions``, which robomimic wants to be between -1 and 1.
        rewards: a step column.
        env_name: the environment, for robomimic's rollouts.

    The next observation of an episode's last step was not recorded; its own stands there again.
    """
    fields = read_options("robomimic", RobomimicOptions, options)
    fields.check("robomimic")
    total = 0
    with made_whole(path, ".hdf5", ".h5") as part, h5py.File(part, "w") as file:
        data = file.create_group("data")
        for number, episode in enumerate(transitions(recording, keys, fields)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = len(episode)
            actions_, count = episode.actions, len(episode)
            demo["actions"] = actions_.reshape(count, 1) if actions_.ndim == 1 else actions_
            demo["rewards"] = episode.rewards
            demo["dones"] = (episode.terminations | episode.truncations).astype("i8")
            seen = {"observations": episode.observations}
            seen.update({f"act_{name}": values for name, values in episode.activations.items()})
            for name, values in seen.items():
                demo[f"obs/{name}"] = values
                demo[f"next_obs/{name}"] = episode.next_of(values)
            total += count
        data.attrs["total"] = total
        data.attrs["env_args"] = json.dumps({"env_name": fields.env_name, "type": GYM_ENV, "env_kwargs": {}})
