"""What was recorded, to be read: the same from RAM and from a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fastrec._contracts import Source
from fastrec._errors import OptionError, RecordKeyError
from fastrec._recording_episodes import Episode, episodes_of
from fastrec._recording_frames import frame_of
from fastrec._recording_keys import kinds_of
from fastrec._recording_records import ActivationRecord as ActivationRecord
from fastrec._recording_records import Records
from fastrec._recording_select import Numbers, names_mask, numbers_mask, of_origin
from fastrec._recording_show import html_of, summary_of
from fastrec._recording_sites import SiteFacts, sites_of
from fastrec._recording_steps import Steps, steps_of
from fastrec._recording_values import Values
from fastrec._recording_view import View

if TYPE_CHECKING:
    import pandas


class Recording(Values):
    """What was recorded up to a moment: records in order of (pass, event), read one by one or as tensors.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> with fastrec.Recorder(model, keep_op="tanh") as rec:
    ...     for _ in range(3):
    ...         out = model(torch.ones(5, 4))
    >>> recording = rec.recording
    >>> recording
    <Recording: 3 records of 1 site in 3 passes>
    >>> recording.stack("1/tanh").shape
    torch.Size([3, 5, 8])
    >>> [record.ctx.pass_index for record in recording["tanh_1"]]
    [0, 1, 2]

    A key is a module's address ("features.3", its output), a site ("features.3/relu") or a label ("relu_2"). Where it
    means different records in two of these, write "module:...", "site:..." or "label:...".
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getstate__(self) -> dict[str, Any]:
        # What can be made of the source again is not copied with it.
        kept = ("_source",) if "_source" in self.__dict__ else ("_view", "_steps")
        return {name: self.__dict__[name] for name in kept}

    @cached_property
    def _view(self) -> View:
        return View(self._source)

    @cached_property
    def _steps(self) -> Steps:
        catalog = self._source.catalog
        return steps_of(self._source.steps(), catalog.phases.items, catalog.header.get("autoreset"))

    @property
    def records(self) -> Records:
        """All records, as a sequence that makes each when it is asked for."""
        return Records(self._view)

    @property
    def n_records(self) -> int:
        """How many records there are."""
        return len(self._view)

    @property
    def n_passes(self) -> int:
        """How many passes ended, those without records included; of a selection, those with records."""
        return self._view.n_passes

    def __len__(self) -> int:
        return len(self._view)

    def __iter__(self) -> Iterator[ActivationRecord]:
        return iter(self.records)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return any(record is key for record in self)
        try:
            kinds_of(self._view, key)
        except RecordKeyError:
            return False
        return True

    @overload
    def __getitem__(self, key: int) -> ActivationRecord: ...
    @overload
    def __getitem__(self, key: slice | str) -> list[ActivationRecord]: ...
    def __getitem__(self, key: int | slice | str) -> ActivationRecord | list[ActivationRecord]:
        if isinstance(key, str):
            return list(Records(self._at(key)))
        if isinstance(key, int | np.integer | slice):
            return self.records[key]
        raise RecordKeyError(f"recording[{key!r}]: give a number, a slice, a module's address, a site or a label")

    def last(self, key: str) -> ActivationRecord:
        """The newest record of a key."""
        return Records(self._at(key))[-1]

    def select(
        self,
        *,
        phase: str | Iterable[str] | None = None,
        entry: str | Iterable[str] | None = None,
        passes: Numbers | None = None,
        steps: Numbers | None = None,
        batch: int | None = None,
        grad: bool | None = None,
    ) -> Recording:
        """A part of the recording, which is a recording again; nothing is copied.

        >>> import torch, fastrec
        >>> model = torch.nn.Linear(4, 2)
        >>> with fastrec.Recorder(model, keep_op="linear") as rec:
        ...     for size in (8, 1, 8):
        ...         out = model(torch.ones(size, 4))
        >>> rec.recording.select(batch=8).stack("linear_1").shape
        torch.Size([2, 8, 2])

        Arguments:
            phase, entry: a name or glob, or several.
            passes: pass indices: a number, a slice, a range or a set; negative numbers count from the end.
            steps: the numbers of steps within their phases; passes of phases without steps are left out.
            batch: the size of the first dimension of a value.
            grad: whether gradients were on when the pass began.
        """
        view, table = self._view, self._steps
        if phase is not None:
            view = view.of_passes(names_mask("phase", phase, view.catalog.phases, view.passes["phase"]))
            for own in table.tables:
                wanted = names_mask("phase", phase, view.catalog.phases, np.array([own.phase]))
                table = table.restrict(own.phase, np.repeat(wanted, len(own.numbers)))
        if entry is not None:
            view = view.of_passes(names_mask("entry", entry, view.catalog.entries, view.passes["entry"]))
        if passes is not None:
            view = view.of_passes(numbers_mask("passes", passes, view.passes["pass_index"]))
            for own in table.tables:
                here = view.passes["step"][view.passes["phase"] == own.phase]
                table = table.restrict(own.phase, np.isin(own.numbers, here))
        if steps is not None:
            view, table = _of_steps(view, table, steps)
        if grad is not None:
            if not isinstance(grad, bool):
                raise OptionError(f"select(grad={grad!r}): give True or False")
            view = view.of_passes(view.passes["grad"] == grad)
        if batch is not None:
            view = _of_batch(view, batch)
        return self._derived(view, table)

    @property
    def ranks(self) -> Mapping[int, Recording]:
        """The recordings that were merged, by rank; none where nothing was."""
        here = ((origin.rank, of_origin(self._view, self._steps, origin)) for origin in self._view.catalog.origins)
        return {rank: self._derived(*found) for rank, found in here}

    @cached_property
    def sites(self) -> Mapping[str, SiteFacts]:
        """What was kept at each site, by name: kind, count, shapes, dtypes, bytes."""
        return sites_of(self._view)

    @property
    def steps(self) -> Steps:
        """The marked steps as a table of columns."""
        return self._steps

    def episodes(self) -> list[Episode]:
        """The episodes of all environments, in order of their start.

        The steps need the columns ``terminated`` and ``truncated`` (or ``done``), one value per environment, and a key
        that is read from an episode needs one firing per step; else a StepError says what is missing. The last episode
        of an environment may be open. Rows in which an environment was only reset belong to no episode.
        """
        return episodes_of(self._view, self._steps)

    def iter_pass(self, pass_index: int) -> Iterator[ActivationRecord]:
        """The records of one pass."""
        mask = self._view.passes["pass_index"] == pass_index
        # A pass that kept nothing has no row of its own, but it is one of those that are counted.
        if not mask.any() and (pass_index < 0 or self.n_passes == len(self._view.passes)):
            known = self._view.passes["pass_index"]
            told = f"there are passes {known.min()} to {known.max()}" if len(known) else "there are none"
            raise RecordKeyError(f"there is no pass {pass_index!r} here; {told}")
        return iter(Records(self._view.of_passes(mask)))

    @property
    def halted(self) -> Mapping[int, str]:
        """Why passes were halted, by pass index."""
        here = set(self._view.passes["pass_index"].tolist())
        return {index: reason for index, reason in self._view.catalog.halted.items() if index in here}

    @property
    def predicate_failures(self) -> list[Any]:
        """What predicates raised, where the recorder was told to collect it: predicate, context and error of each."""
        return list(self._view.catalog.failures)

    def summary(self) -> str:
        """A table of the sites: how many records in how many passes, of what shape and dtype, how many bytes."""
        return summary_of(self._told(), self.sites)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per record, with the fields of its context; needs ``fastrec[pandas]``."""
        return frame_of(self._view)

    def __repr__(self) -> str:
        return f"<Recording: {self._told()}>"

    def _repr_html_(self) -> str:
        return html_of(self._told(), self.sites)

    def _told(self) -> str:
        sites = len({self._view.site(kind).name for kind in self._view.kinds})
        return (
            f"{self.n_records} record{_s(self.n_records)} of {sites} site{_s(sites)} in {self.n_passes} "
            f"pass{_s(self.n_passes, 'es')}"
        )

    def _derived(self, view: View, table: Steps) -> Recording:
        recording = Recording.__new__(Recording)
        recording._view, recording._steps = view, table
        return recording


def _of_steps(view: View, table: Steps, steps: Numbers) -> tuple[View, Steps]:
    kept = np.zeros(len(view.passes), np.bool_)
    for phase in sorted(view.marked):
        here = np.flatnonzero(view.passes["phase"] == phase)
        numbers = next((own.numbers for own in table.tables if own.phase == phase), np.empty(0, np.int64))
        both = numbers_mask("steps", steps, np.concatenate([numbers, view.passes["step"][here]]))
        table = table.restrict(phase, both[: len(numbers)])
        kept[here] = both[len(numbers) :] & (view.passes["step"][here] >= 0)
    return view.of_passes(kept), table


def _of_batch(view: View, batch: Any) -> View:
    if not isinstance(batch, int) or isinstance(batch, bool):
        raise OptionError(f"select(batch={batch!r}): give the size of the first dimension, a number")
    fitting = [kind for kind in view.kinds if view.variant(kind).shape[:1] == (batch,)]
    if not fitting:
        sizes = sorted({shape[0] for kind in view.kinds if (shape := view.variant(kind).shape)})
        raise RecordKeyError(f"select(batch={batch}): no value has that many rows; there are {sizes}")
    view = view.take(np.isin(view.variants, fitting))
    fired = np.zeros(len(view.passes), np.bool_)
    fired[view.pass_at] = True
    return view.of_passes(fired)


def _s(count: int, ending: str = "s") -> str:
    return "" if count == 1 else ending
