"""The parts of a recording that several processes made: by rank, by worker, by role.

    recording.ranks[1]                            # a Ranks, which makes the part when it is asked for
    recording.select(role="rollout", worker=3)    # a ProcessChoice

The passes of a process are one range of pass indices, and its phases are its own, so a part is found without a look at
the records of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import msgspec

from fastrec._errors import OptionError, RecordKeyError
from fastrec.events.sites import Origin
from fastrec.recording._steps import Steps
from fastrec.recording._view import View

P = TypeVar("P")
"""What a part of a recording is: a Recording."""


class Ranks(Mapping[int, P]):
    """The part of each rank, made when it is asked for."""

    def __init__(self, origins: Sequence[Origin], part: Callable[[int], P]) -> None:
        self._ranks = sorted({origin.rank for origin in origins if origin.rank >= 0})
        self._part = part

    def __getitem__(self, rank: int) -> P:
        if rank not in self._ranks:
            raise RecordKeyError(f"nothing was recorded by rank {rank!r}; there are {self._ranks or 'no ranks'}")
        return self._part(rank)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ranks)

    def __len__(self) -> int:
        return len(self._ranks)

    def __repr__(self) -> str:
        return f"<Ranks {self._ranks}>"


class ProcessChoice(msgspec.Struct, frozen=True):
    """Which processes are meant: each field is None, a value, or several."""

    rank: int | Iterable[int] | None = None
    worker: int | Iterable[int] | None = None
    role: str | Iterable[str] | None = None


def of_ranks(view: View, steps: Steps, rank: int) -> tuple[View, Steps]:
    """The passes and steps of all attempts of one rank."""
    return _of_origins(view, steps, [origin for origin in view.catalog.origins if origin.rank == rank])


def of_processes(view: View, steps: Steps, choice: ProcessChoice) -> tuple[View, Steps]:
    """The passes and steps of the processes that are meant; an option that none has is an error."""
    origins = view.catalog.origins
    if not origins:
        raise RecordKeyError(
            "one process made this recording; select(rank=, worker=, role=) is for folders and merged recordings"
        )
    origins = _matching("rank", choice.rank, origins, lambda origin: origin.rank)
    origins = _matching("worker", choice.worker, origins, lambda origin: origin.process.worker)
    origins = _matching("role", choice.role, origins, lambda origin: origin.process.role)
    return _of_origins(view, steps, origins)


def _of_origins(view: View, steps: Steps, origins: Sequence[Origin]) -> tuple[View, Steps]:
    ranges = [(origin.first_pass, origin.first_pass + origin.passes) for origin in origins]
    phases = {phase for origin in origins for phase in origin.phases}
    return view.of_pass_ranges(ranges), steps.of_phases(phases)


def _matching(name: str, wanted: Any, origins: Sequence[Origin], read: Callable[[Origin], Any]) -> list[Origin]:
    """The origins of which a fact is one of those that are wanted."""
    if wanted is None:
        return list(origins)
    kind: type = str if name == "role" else int
    values = [wanted] if isinstance(wanted, int | str) else list(wanted)
    if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
        what = "a name, a glob" if name == "role" else "a number"
        raise OptionError(f"select({name}={wanted!r}): give {what} or several of them")
    facts = sorted({read(origin) for origin in origins})
    for value in values:
        if not any(_fits(fact, value) for fact in facts):
            raise RecordKeyError(f"select({name}={value!r}): no process has it; there are {facts}")
    return [origin for origin in origins if any(_fits(read(origin), value) for value in values)]


def _fits(fact: Any, value: Any) -> bool:
    return fnmatchcase(fact, value) if isinstance(value, str) else bool(fact == value)
