"""robomimic: a group per demonstration."""

from __future__ import annotations

import json
import os
from typing import Any

import h5py

from fastrec.exports._contract import Keys, atomic_output, read_options
from fastrec.exports._episodes import TransitionOptions, episodes_of, next_rows, transitions
from fastrec.recording._recording import Recording

GYM_TYPE = 2
"""robomimic's number for Gym environments."""


class RobomimicOptions(TransitionOptions, frozen=True, kw_only=True):
    """Where robomimic's arrays come from, and the name of the environment."""

    env_name: str = ""


def to_robomimic(
    recording: Recording, path: str | os.PathLike[str], *, keys: Keys | None = None, **options: Any
) -> None:
    """Write a file with ``data/demo_0`` and so on, which robomimic's ``SequenceDataset`` opens.

    Arguments:
        path: a file, which has to end in .hdf5 or .h5.
        keys: see ``export``; each is an observation of its own, ``obs/act_<name>``.
        observations, actions: a key of the recording, or a step column; they become ``obs/observations`` and
            ``actions``, which robomimic expects to be between -1 and 1.
        rewards: a step column.
        autoreset: as in ``recording.episodes``.
        env_name: the environment, for robomimic's rollouts.

    What followed the last step of an episode was not recorded, so its own observation stands there again. Where
    several processes recorded, each group has the attribute ``rank``.
    """
    fields = read_options("robomimic", RobomimicOptions, options)
    fields.check("robomimic")
    total = 0
    with atomic_output(path, ".hdf5", ".h5") as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        for number, episode in enumerate(episodes_of(transitions(recording, keys, fields))):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = len(episode)
            if episode.ranks is not None:
                demo.attrs["rank"] = int(episode.ranks[0])
            # robomimic reads the size of an action from the second axis.
            demo["actions"] = episode.actions[:, None] if episode.actions.ndim == 1 else episode.actions
            demo["rewards"] = episode.rewards
            demo["dones"] = (episode.terminations | episode.truncations).astype("i8")
            observations = {"observations": episode.observations}
            observations.update({f"act_{name}": values for name, values in episode.activations.items()})
            for name, values in observations.items():
                demo[f"obs/{name}"] = values
                demo[f"next_obs/{name}"] = next_rows(values)
            total += len(episode)
        data.attrs["total"] = total
        data.attrs["env_args"] = json.dumps({"env_name": fields.env_name, "type": GYM_TYPE, "env_kwargs": {}})
