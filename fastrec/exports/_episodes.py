"""Transitions episode by episode, for the formats of offline reinforcement learning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from fastrec._errors import OptionError, StepError
from fastrec.exports._contract import Keys, keys_by_name
from fastrec.recording._arrays import fill_missing, numpy_of
from fastrec.recording._recording import Recording
from fastrec.recording._source import Array
from fastrec.recording._steps import Autoreset, Episode


class TransitionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the parts of a transition come from: keys of the recording, or columns of its steps."""

    observations: str | None = None
    actions: str | None = None
    rewards: str = "reward"
    autoreset: Autoreset | None = None

    def check(self, format: str) -> None:
        """Raise OptionError where observations or actions are not given."""
        for name in ("observations", "actions"):
            if getattr(self, name) is None:
                raise OptionError(
                    f"{format} needs {name}: give {name}= a key of the recording (such as ':in[0]' or ':out') or a "
                    "step column"
                )


class Transitions(msgspec.Struct):
    """One episode of T steps: arrays of T rows each; its rank where several processes recorded."""

    observations: Array
    actions: Array
    rewards: Array
    terminations: Array
    truncations: Array
    activations: dict[str, Array]
    rank: int | None = None

    def __len__(self) -> int:
        return len(self.rewards)


def next_rows(values: Array) -> Array:
    """What each step led to; nothing was recorded after the last step, so its own row stands there again."""
    return np.concatenate([values[1:], values[-1:]])


def transitions(recording: Recording, keys: Keys | None, options: TransitionOptions) -> Iterator[Transitions]:
    """All episodes, each read when its turn comes."""
    key_of = keys_by_name(recording, keys)
    if keys is None:
        used = {f"site:{name}" for name in (options.observations, options.actions)}
        key_of = {name: key for name, key in key_of.items() if key not in used}
    hdf5_name_of = hdf5_names(key_of)
    for episode in recording.episodes(autoreset=options.autoreset):
        terminations, truncations = np.zeros((2, len(episode)), np.bool_)
        terminations[-1] = episode.terminated
        truncations[-1] = episode.truncated or not episode.terminated
        yield Transitions(
            _values(episode, "observations", options.observations),
            _values(episode, "actions", options.actions),
            _values(episode, "rewards", options.rewards).astype(np.float32),
            terminations,
            truncations,
            {hdf5_name_of[name]: numpy_of(episode[key]) for name, key in key_of.items()},
            episode.rank,
        )


def hdf5_names(names: Iterable[str]) -> dict[str, str]:
    """Names without slashes, which HDF5 would take for groups, all different."""
    hdf5_name_of: dict[str, str] = {}
    for name in names:
        hdf5_name, number = name.replace("/", "."), 2
        while hdf5_name in hdf5_name_of.values():
            hdf5_name, number = f"{name.replace('/', '.')}#{number}", number + 1
        hdf5_name_of[name] = hdf5_name
    return hdf5_name_of


def _values(episode: Episode, what: str, name: str | None) -> Array:
    assert name is not None
    columns = episode.columns
    if name in columns:
        return fill_missing(columns[name])
    if what == "rewards":
        names = ", ".join(map(repr, columns)) or "none"
        raise StepError(f"no step was marked with a column {name!r} for the rewards; there are {names}")
    return numpy_of(episode[name])
