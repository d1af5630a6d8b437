"""Which passes, steps and records a selection means."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from fastrec._errors import OptionError, RecordKeyError, near
from fastrec._recording_steps import Steps
from fastrec._recording_view import Integers, Mask, View
from fastrec.events.sites import Interned, Origin

Numbers = int | slice | range | Iterable[int]
"""Which passes or steps: one number, a slice or range of them, or any collection."""


def numbers_mask(option: str, wanted: Numbers, values: Integers) -> Mask:
    """Which values are wanted; negative ones count from the largest."""
    end = int(values.max()) + 1 if len(values) else 0
    if isinstance(wanted, slice):
        start, stop, step = wanted.indices(end)
        return np.isin(values, np.arange(start, stop, step))
    if isinstance(wanted, range):
        return np.isin(values, np.arange(wanted.start, wanted.stop, wanted.step))
    chosen = [wanted] if isinstance(wanted, int | np.integer) else _listed(option, wanted)
    if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in chosen):
        raise OptionError(f"select({option}={wanted!r}): give a number, a slice, a range or a set of numbers")
    return np.isin(values, np.array([n if n >= 0 else end + n for n in chosen], dtype=np.int64))


def names_mask(option: str, globs: str | Iterable[str], names: Interned[str], values: Integers) -> Mask:
    """Which values number a name that some glob matches; a glob that matches no name is an error."""
    listed = [globs] if isinstance(globs, str) else _listed(option, globs)
    numbers: list[int] = []
    for glob in listed:
        if not isinstance(glob, str):
            raise OptionError(f"select({option}={globs!r}): give a name, a glob or a list of them")
        found = [number for number, name in enumerate(names.items) if fnmatchcase(name, glob)]
        if not found:
            raise RecordKeyError(f"select({option}={glob!r}) matches nothing; {near(glob, names.items)}")
        numbers += found
    return np.isin(values, np.array(numbers, dtype=np.int64))


def of_origin(view: View, table: Steps, origin: Origin) -> tuple[View, Steps]:
    """The passes and steps of one of the recordings that were merged."""
    index = view.passes["pass_index"] - origin.first_pass
    for own in table.tables:
        table = table.restrict(own.phase, np.full(len(own.numbers), own.phase in origin.phases))
    return view.of_passes((index >= 0) & (index < origin.passes)), table


def _listed(option: str, given: Any) -> list[Any]:
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise OptionError(f"select({option}={given!r}): this is neither one of them nor a collection")
    return list(given)
