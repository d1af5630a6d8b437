"""Transitions episode by episode, for the formats of offline reinforcement learning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fastrec._errors import OptionError, StepError
from fastrec.exports._contract import Keys, named, plain
from fastrec.recording._arrays import filled, numpy_of
from fastrec.recording._recording import Recording
from fastrec.recording._steps import Episode

Array = npt.NDArray[Any]


class Transitions(msgspec.Struct):
    """One episode of T steps: arrays of T rows each."""

    observations: Array
    actions: Array
    rewards: Array
    terminations: Array
    truncations: Array
    activations: dict[str, Array]

    def __len__(self) -> int:
        return len(self.rewards)

    def next_of(self, array: Array) -> Array:
        """What each step led to; nothing was recorded of the last one, whose own row stands there again."""
        return np.concatenate([array[1:], array[-1:]])


class TransitionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the parts of a transition are found: keys of the recording, or columns of its steps."""

    observations: str | None = None
    actions: str | None = None
    rewards: str = "reward"

    def check(self, format: str) -> None:
        """Raise OptionError where something is not told."""
        for name in ("observations", "actions"):
            if getattr(self, name) is None:
                raise OptionError(
                    f"{format} needs {name}: give {name}= a key of the recording (such as ':in[0]' or ':out') or a "
                    "step column"
                )


def transitions(recording: Recording, keys: Keys | None, fields: TransitionOptions) -> Iterator[Transitions]:
    """All episodes, each read when its turn comes."""
    names = named(recording, keys)
    if keys is None:
        taken = {f"site:{name}" for name in (fields.observations, fields.actions)}
        names = {name: key for name, key in names.items() if key not in taken}
    short = plain(names)
    for episode in recording.episodes():
        ended = np.zeros((2, len(episode)), np.bool_)
        ended[:, -1] = episode.terminated, episode.truncated or not episode.terminated
        yield Transitions(
            _part(episode, "observations", fields.observations),
            _part(episode, "actions", fields.actions),
            _part(episode, "rewards", fields.rewards).astype(np.float32),
            ended[0],
            ended[1],
            {short[name]: numpy_of(episode[key]) for name, key in names.items()},
        )


def _part(episode: Episode, what: str, name: str | None) -> Array:
    assert name is not None
    columns = episode.columns
    if name in columns:
        return filled(columns[name])
    if what == "rewards":
        known = ", ".join(map(repr, columns)) or "none"
        raise StepError(f"no step was marked with a column {name!r} for the rewards; there are {known}")
    return numpy_of(episode[name])
