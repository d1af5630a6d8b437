"""Which records of a source somebody looks at: an index over its arrays, without an object per record."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrec._errors import RecordKeyError, did_you_mean
from fastrec.events.capture import CaptureSpec
from fastrec.events.sites import PassInfo, RecordMeta, Site
from fastrec.recording._source import OUTCOMES, Source

Integers = npt.NDArray[np.int64]

Mask = npt.NDArray[np.bool_]


class View:
    """Some passes of a source, and some of their records, both in order."""

    def __init__(self, source: Source, passes: npt.NDArray[Any] | None = None, at: Integers | None = None) -> None:
        self.source = source
        self.catalog = source.catalog
        self.passes = source.passes() if passes is None else passes
        self.n_passes = source.n_passes() if passes is None else len(passes)
        self._at = at

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (self.source, self.passes, self._at, self.n_passes)

    @cached_property
    def at(self) -> Integers:
        """The position of each record among the records of the source."""
        return np.arange(len(self.source.records())) if self._at is None else self._at

    def __len__(self) -> int:
        return len(self.source.records()) if self._at is None else len(self._at)

    @cached_property
    def meta_numbers(self) -> Integers:
        """The meta of each record."""
        return self.source.records()["meta"][self.at].astype(np.int64)

    @cached_property
    def rows(self) -> Integers:
        """The row of each record."""
        rows: Integers = self.source.records()["row"][self.at]
        return rows

    @cached_property
    def pass_at(self) -> Integers:
        """The position of each record's pass among the passes of this view."""
        return np.searchsorted(self.passes["first"] + self.passes["count"], self.at, side="right")

    @cached_property
    def metas(self) -> list[int]:
        """The metas that occur, in order of their numbers."""
        metas: list[int] = np.flatnonzero(np.diff(self._by_meta[1])).tolist()
        return metas

    @cached_property
    def _by_meta(self) -> tuple[Integers, Integers]:
        """The records sorted by meta, those of one in their order, and where each meta begins there."""
        metas = self.meta_numbers
        short = metas.max(initial=0) < 1 << 15  # which numpy sorts in linear time
        order = np.argsort(metas.astype(np.int16) if short else metas, kind="stable")
        return order, np.concatenate(([0], np.cumsum(np.bincount(metas))))

    @cached_property
    def marked(self) -> frozenset[int]:
        """The phases that have steps."""
        return frozenset(steps.phase for steps in self.source.steps())

    def meta(self, number: int) -> RecordMeta:
        return self.catalog.metas[number]

    def site(self, meta: int) -> Site:
        return self.catalog.site_of(meta)

    def spec(self, meta: int) -> CaptureSpec:
        return self.catalog.specs[self.catalog.metas[meta].spec]

    def take(self, chosen: Mask | Integers) -> View:
        """Some of the records; all passes stay."""
        is_mask = chosen.dtype == np.bool_
        positions: Integers = np.flatnonzero(chosen) if is_mask else chosen.astype(np.int64, copy=False)
        view = self._of(positions)
        view.meta_numbers = self.meta_numbers[positions]
        return view

    def of_metas(self, metas: Iterable[int]) -> View:
        """The records of some of the metas that occur; all passes stay."""
        metas = sorted(metas)
        order, first = self._by_meta
        pieces = [order[first[meta] : first[meta + 1]] for meta in metas]
        if len(metas) > 1:
            view = self.take(np.sort(np.concatenate(pieces)))
        else:
            ((meta,), (at,)) = metas, pieces
            view = self._of(at)
            view.meta_numbers = np.broadcast_to(np.int64(meta), len(at))
        view.metas = metas
        return view

    def _of(self, positions: Integers) -> View:
        """The records at some positions, of which the metas are still to be told."""
        view = View(self.source, self.passes, positions if self._at is None else self._at[positions])
        view.n_passes = self.n_passes
        view.rows = self.rows.take(positions)
        return view

    def of_passes(self, mask: Mask) -> View:
        """Some of the passes, with their records."""
        return View(self.source, self.passes[mask], self.at[mask[self.pass_at]])

    def info(self, position: int) -> PassInfo:
        """What is known about a pass."""
        index, entry, entry_pass, phase, grad, outcome, step, started, duration, _, _ = self.passes[position].item()
        sample = self.source.sample_id(index)
        return PassInfo(index, entry, entry_pass, phase, grad, started, sample, step, duration, OUTCOMES[outcome])

    def step_of(self, info: PassInfo) -> int | None:
        """The step of a pass; None in a phase that has no steps, or where its session ended before its step."""
        return info.step if info.step > 0 or (info.step == 0 and info.phase in self.marked) else None


def _remade(source: Source, passes: npt.NDArray[Any], at: Integers | None, n_passes: int) -> View:
    view = View(source, passes, at)
    view.n_passes = n_passes
    return view


FORMS = ("module", "site", "label")


def metas_of_key(view: View, key: str) -> frozenset[int]:
    """The metas that a key means.

    A key that means different records in two forms is an error: nobody could tell from the code which it was.
    """
    form, _, rest = key.partition(":")
    hits: dict[str, frozenset[int]] = {}
    for name in FORMS:
        found = _metas(view, name, key)
        if found and found not in hits.values():
            hits[name] = found
    if form in FORMS and not hits:
        found = _metas(view, form, rest)
        if found:
            hits[form] = found
    if len(hits) > 1:
        forms = " or ".join(repr(f"{name}:{key}") for name in hits)
        raise RecordKeyError(f"{key!r} is ambiguous here; say {forms}")
    if not hits:
        raise RecordKeyError(_nothing(view, key))
    return next(iter(hits.values()))


def base_name(site: Site) -> str:
    """The name of a site without the path of its leaf."""
    return site.name.removesuffix(site.output_address) if site.output_address else site.name


def _metas(view: View, form: str, key: str) -> frozenset[int]:
    if form == "label":
        return frozenset(meta for meta in view.metas if view.meta(meta).label == key)
    if form == "module":
        return _of_sites(view, lambda site: site.kind == "module_exit" and site.module_address == key)
    return _of_sites(view, lambda site: key in (site.name, base_name(site)))


def _of_sites(view: View, wanted: Callable[[Site], bool]) -> frozenset[int]:
    return frozenset(meta for meta in view.metas if wanted(view.site(meta)))


def _nothing(view: View, key: str) -> str:
    if not len(view):
        return f"there is nothing under {key!r}: this recording has no records"
    sites = [view.site(meta).name for meta in view.metas]
    known = [*sites, *(view.meta(meta).label for meta in view.metas)]
    form, _, rest = key.partition(":")
    within = [name for name in sites if name.startswith(f"{key}/")]
    if within:
        return f"there is nothing under {key!r} itself, but there is {' and '.join(map(repr, dict.fromkeys(within)))}"
    return f"there is nothing under {key!r}; {did_you_mean(rest if form in FORMS else key, known)}"
