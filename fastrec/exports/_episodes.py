"""Transitions of many episodes at a time, for the formats of offline reinforcement learning.

    for stretch in transitions(recording, keys, options):
        stretch.rewards  # those of many episodes, one after another
        for episode in stretch.episodes():
            episode.rewards  # those of one

There may be tens of thousands of short episodes, so nothing is read for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec
import numpy as np

from fastrec._errors import OptionError, StepError
from fastrec.exports._contract import Keys, keys_by_name
from fastrec.recording._arrays import fill_missing, numpy_of
from fastrec.recording._recording import Recording
from fastrec.recording._source import Array, Integers
from fastrec.recording._steps import Autoreset, Firings, PhaseEpisodes, phase_episodes

STRETCH_STEPS = 1 << 14
"""About how many steps of all episodes are read at a time."""


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
    """Several episodes one after another: arrays of a row for each of their steps, and the length of each episode.

    ``ranks`` has the rank of each row where several processes recorded.
    """

    lengths: Integers
    observations: Array
    actions: Array
    rewards: Array
    terminations: Array
    truncations: Array
    activations: dict[str, Array]
    ranks: Integers | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    def episodes(self) -> Iterator[Transitions]:
        """Each episode by itself; its arrays are views."""
        stops = np.cumsum(self.lengths)
        for number, (start, stop) in enumerate(zip((stops - self.lengths).tolist(), stops.tolist(), strict=True)):
            yield Transitions(
                self.lengths[number : number + 1],
                self.observations[start:stop],
                self.actions[start:stop],
                self.rewards[start:stop],
                self.terminations[start:stop],
                self.truncations[start:stop],
                {name: values[start:stop] for name, values in self.activations.items()},
                None if self.ranks is None else self.ranks[start:stop],
            )


def next_rows(values: Array) -> Array:
    """What each step led to; nothing was recorded after the last step, so its own row stands there again."""
    return np.concatenate([values[1:], values[-1:]])


def transitions(recording: Recording, keys: Keys | None, options: TransitionOptions) -> Iterator[Transitions]:
    """All episodes, in stretches of many that are each read when their turn comes."""
    key_of = keys_by_name(recording, keys)
    if keys is None:
        used = {f"site:{name}" for name in (options.observations, options.actions)}
        key_of = {name: key for name, key in key_of.items() if key not in used}
    hdf5_name_of = hdf5_names(key_of)
    key_of = {hdf5_name_of[name]: key for name, key in key_of.items()}
    for phase in phase_episodes(recording._view, recording.steps, Firings(), options.autoreset):
        for first, last in _stretches(phase):
            yield _transitions_of(phase, slice(first, last), key_of, options)


def episodes_of(stretches: Iterable[Transitions]) -> Iterator[Transitions]:
    """Episode by episode, for formats with a group for each."""
    return (episode for stretch in stretches for episode in stretch.episodes())


def count_steps(recording: Recording, options: TransitionOptions) -> int:
    """How many steps all episodes have."""
    phases = phase_episodes(recording._view, recording.steps, Firings(), options.autoreset)
    return int(sum((phase.stop - phase.start).sum() for phase in phases))


def _stretches(phase: PhaseEpisodes) -> Iterator[tuple[int, int]]:
    """The first episode and the one after the last of each stretch: whole episodes of about ``STRETCH_STEPS`` steps."""
    stops = np.cumsum(phase.stop - phase.start)
    edges = np.searchsorted(stops, np.arange(STRETCH_STEPS, stops.max(initial=0) + STRETCH_STEPS, STRETCH_STEPS))
    first = 0
    for last in np.minimum(edges + 1, len(stops)).tolist():
        if last > first:
            yield first, last
            first = last


def _transitions_of(
    phase: PhaseEpisodes, episodes: slice, key_of: Mapping[str, str], options: TransitionOptions
) -> Transitions:
    starts, stops = phase.start[episodes], phase.stop[episodes]
    lengths = stops - starts
    last_rows = np.cumsum(lengths) - 1
    rows = np.arange(lengths.sum()) + np.repeat(starts - (last_rows + 1 - lengths), lengths)
    envs = np.repeat(phase.env[episodes], lengths)
    read = _RowReader(phase, rows, envs)
    terminations, truncations = np.zeros((2, len(rows)), np.bool_)
    terminations[last_rows] = phase.terminated[episodes]
    truncations[last_rows] = phase.truncated[episodes] | ~phase.terminated[episodes]
    rank = phase.view.catalog.rank_of_phase(phase.table.phase)
    return Transitions(
        lengths,
        read.column_or_key("observations", options.observations),
        read.column_or_key("actions", options.actions),
        read.column_or_key("rewards", options.rewards).astype(np.float32),
        terminations,
        truncations,
        {name: read.key(key) for name, key in key_of.items()},
        None if rank is None else np.full(len(rows), rank, np.int64),
    )


class _RowReader:
    """Reads the same rows of several keys and columns, those of one environment each."""

    def __init__(self, phase: PhaseEpisodes, rows: Integers, envs: Integers) -> None:
        self._phase = phase
        self._rows = rows
        self._envs = envs
        # Each step is read once for all environments.
        self._steps, self._place = np.unique(rows, return_inverse=True)

    def key(self, key: str) -> Array:
        return numpy_of(self._phase.values(key, self._steps))[self._place, self._envs]

    def column_or_key(self, what: str, name: str | None) -> Array:
        assert name is not None
        names = self._phase.column_names
        if name in names:
            return fill_missing(self._phase.column(name, self._rows, self._envs))
        if what == "rewards":
            listed = ", ".join(map(repr, names)) or "none"
            raise StepError(f"no step was marked with a column {name!r} for the rewards; there are {listed}")
        return self.key(name)


def hdf5_names(names: Iterable[str]) -> dict[str, str]:
    """Names without slashes, which HDF5 would take for groups, all different."""
    hdf5_name_of: dict[str, str] = {}
    for name in names:
        hdf5_name, number = name.replace("/", "."), 2
        while hdf5_name in hdf5_name_of.values():
            hdf5_name, number = f"{name.replace('/', '.')}#{number}", number + 1
        hdf5_name_of[name] = hdf5_name
    return hdf5_name_of
