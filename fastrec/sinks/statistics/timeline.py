"""The time bins of a run that nobody knows the end of: equally many passes each, twice as many whenever there are too
many.

>>> timeline = Timeline(most=4)
>>> timeline.width, timeline.widen(index=40), timeline.width
(8, 1, 16)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrec.events.sites import Catalog, PassInfo
from fastrec.report.run import TimeBins

MIN_PASSES = 8
"""Passes of a bin at the beginning that are looked at: those of shorter ones would be measured nearly one by one."""


class TimeBin:
    """A stretch of passes; ``number`` times the width is the index of the first that belongs to it."""

    __slots__ = (
        *("ended", "episode_ends", "first_mark", "first_pass", "last_mark", "last_pass", "number", "passes"),
        *("phases", "started"),
    )

    def __init__(self, number: int, info: PassInfo, marks: int) -> None:
        self.number = number
        self.first_pass = self.last_pass = info.index
        self.first_mark = self.last_mark = marks
        self.started, self.ended = info.started, info.started + info.duration
        self.passes = self.episode_ends = 0
        self.phases: Counter[int] = Counter()

    def add(self, info: PassInfo, marks: int) -> None:
        """A pass of it ended. Passes of several threads end in another order than they began."""
        self.passes += 1
        self.phases[info.phase] += 1
        if info.index >= self.last_pass:
            self.last_pass, self.last_mark, self.ended = info.index, marks, info.started + info.duration
        elif info.index < self.first_pass:
            self.first_pass, self.first_mark, self.started = info.index, marks, info.started

    def merge(self, later: TimeBin) -> None:
        """Take in the bin that follows."""
        self.last_pass, self.last_mark, self.ended = later.last_pass, later.last_mark, later.ended
        self.passes += later.passes
        self.episode_ends += later.episode_ends
        self.phases += later.phases


class Timeline:
    """The bins of a run that goes on.

    Arguments:
        most: how many bins there may be.
        every: of how many passes one is looked at.
    """

    def __init__(self, most: int, every: int = 1) -> None:
        self.width = MIN_PASSES * every
        self._most = most
        self._bins: dict[int, TimeBin] = {}
        self._newest: TimeBin | None = None
        self._marks = 0

    def __len__(self) -> int:
        return len(self._bins)

    def widen(self, index: int) -> int:
        """Make the bins so wide that there is one for a pass; how often the width was doubled."""
        doublings = 0
        while index // self.width >= self._most:
            self.width *= 2
            doublings += 1
            for number in sorted(self._bins):
                later = self._bins.pop(number)
                later.number = number // 2
                earlier = self._bins.setdefault(later.number, later)
                if earlier is not later:
                    earlier.merge(later)
            self._newest = self._bins[max(self._bins)] if self._bins else None
        return doublings

    def add(self, info: PassInfo) -> bool:
        """A pass ended for which there is a bin; True where it is the first of that."""
        number = info.index // self.width
        newest = self._newest
        if newest is not None and newest.number == number:
            newest.add(info, self._marks)
            return False
        bin = self._bins.get(number)
        is_new = bin is None
        if bin is None:
            bin = self._bins[number] = TimeBin(number, info, self._marks)
        bin.add(info, self._marks)
        if newest is None or number > newest.number:
            self._newest = bin
        return is_new

    def mark(self, episode_ends: int) -> None:
        """A step was marked, with which so many episodes ended."""
        self._marks += 1
        if self._newest is not None:
            self._newest.episode_ends += episode_ends

    def numbers_of(self, passes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The number of the bin of each pass."""
        return passes // self.width

    def bins(self) -> list[TimeBin]:
        """The bins in order."""
        return [self._bins[number] for number in sorted(self._bins)]


def table_of(bins: Sequence[TimeBin], catalog: Catalog) -> TimeBins:
    """The same as arrays."""
    phases = sorted({phase for bin in bins for phase in bin.phases})

    def column(name: str, dtype: Any = np.int64) -> npt.NDArray[Any]:
        return np.array([getattr(bin, name) for bin in bins], dtype)

    return TimeBins(
        first_pass=column("first_pass"),
        last_pass=column("last_pass"),
        passes=column("passes"),
        first_mark=column("first_mark"),
        last_mark=column("last_mark"),
        started=column("started", np.float64) - catalog.began,
        ended=column("ended", np.float64) - catalog.began,
        episode_ends=column("episode_ends"),
        phases={catalog.phases[phase]: np.array([bin.phases[phase] for bin in bins], np.int64) for phase in phases},
    )
