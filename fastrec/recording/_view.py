"""An index over the records of a source: which of them are looked at, and which of them a key means.

    view = View(source)  # all passes and all records
    view = view.of_passes(view.passes["phase"] == 1)  # those of some passes
    view = view.of_metas(metas_of_key(view, "encoder/relu"))  # those of a key
    values = view.source.values(view.meta_numbers, view.rows, "activation")

A view is a few arrays of numbers, each worked out when it is first read. Narrowing it copies numbers, never values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrec._errors import RecordKeyError, did_you_mean
from fastrec.events.capture import CaptureSpec
from fastrec.events.sites import PassInfo, RecordMeta, Site
from fastrec.predicates._addresses import AddressGlobs, is_glob, nearest
from fastrec.recording._source import OUTCOMES, Integers, Source, StructuredArray

Mask = npt.NDArray[np.bool_]

KEY_FORMS = ("module", "site", "label")


class View:
    """Some passes of a source and some of their records, both in order.

    ``passes`` are rows of ``PASS_DTYPE``; ``n_passes`` also counts passes that kept nothing, which have no row.
    """

    def __init__(
        self, source: Source, passes: StructuredArray | None = None, positions: Integers | None = None
    ) -> None:
        self.source = source
        self.catalog = source.catalog
        self.passes = source.passes() if passes is None else passes
        self.n_passes = source.n_passes() if passes is None else len(passes)
        self._positions = positions

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled_view, (self.source, self.passes, self._positions, self.n_passes)

    @cached_property
    def positions(self) -> Integers:
        """The position of each record among all records of the source."""
        return np.arange(len(self.source.records())) if self._positions is None else self._positions

    def __len__(self) -> int:
        return len(self.source.records()) if self._positions is None else len(self._positions)

    @cached_property
    def meta_numbers(self) -> Integers:
        """The meta of each record."""
        return self.source.records()["meta"][self.positions].astype(np.int64)

    @cached_property
    def rows(self) -> Integers:
        """The row in which the value of each record lies; -1 where no tensor was kept."""
        rows: Integers = self.source.records()["row"][self.positions]
        return rows

    @cached_property
    def pass_positions(self) -> Integers:
        """The position of each record's pass in ``passes``."""
        return np.searchsorted(self.passes["first"] + self.passes["count"], self.positions, side="right")

    @cached_property
    def metas(self) -> list[int]:
        """The metas that occur, in order of their numbers."""
        metas: list[int] = np.flatnonzero(np.diff(self._sorted_by_meta[1])).tolist()
        return metas

    @cached_property
    def _sorted_by_meta(self) -> tuple[Integers, Integers]:
        """The records sorted by meta, in order within a meta, and where the records of each meta begin."""
        metas = self.meta_numbers
        # numpy sorts integers of 16 bits in linear time, with a radix sort.
        fits_16_bits = metas.max(initial=0) < 1 << 15
        order = np.argsort(metas.astype(np.int16) if fits_16_bits else metas, kind="stable")
        return order, np.concatenate(([0], np.cumsum(np.bincount(metas))))

    @cached_property
    def phases_with_steps(self) -> frozenset[int]:
        """The phases in which steps were marked."""
        return frozenset(steps.phase for steps in self.source.steps())

    def meta(self, number: int) -> RecordMeta:
        return self.catalog.metas[number]

    def site(self, meta: int) -> Site:
        return self.catalog.site_of(meta)

    def spec(self, meta: int) -> CaptureSpec:
        return self.catalog.specs[self.catalog.metas[meta].spec]

    def take(self, chosen: Mask | Integers) -> View:
        """Some of the records, by a mask or by their positions in this view; all passes stay."""
        is_mask = chosen.dtype == np.bool_
        indices: Integers = np.flatnonzero(chosen) if is_mask else chosen.astype(np.int64, copy=False)
        view = self._at(indices)
        view.meta_numbers = self.meta_numbers[indices]
        return view

    def of_metas(self, metas: Iterable[int]) -> View:
        """The records of some of the metas that occur; all passes stay."""
        metas = sorted(metas)
        order, starts = self._sorted_by_meta
        groups = [order[starts[meta] : starts[meta + 1]] for meta in metas]
        if len(groups) == 1:
            view = self._at(groups[0])
            view.meta_numbers = np.full(len(groups[0]), metas[0], np.int64)
        else:
            view = self.take(np.sort(np.concatenate(groups)))
        view.metas = metas
        return view

    def _at(self, indices: Integers) -> View:
        """The records at some positions of this view; the caller sets ``meta_numbers``."""
        view = View(self.source, self.passes, indices if self._positions is None else self._positions[indices])
        view.n_passes = self.n_passes
        # From this view's own array, because in the record table a row number is spread over 20 bytes.
        view.rows = self.rows.take(indices)
        return view

    def of_passes(self, mask: Mask) -> View:
        """Some of the passes, with their records."""
        return View(self.source, self.passes[mask], self.positions[mask[self.pass_positions]])

    def of_pass_ranges(self, ranges: Sequence[tuple[int, int]]) -> View:
        """The passes whose indices lie in one of some ranges, with their records; it takes no time for the others.

        ``ranges`` are in order and don't overlap.
        """
        edges = np.searchsorted(self.passes["pass_index"], np.array(ranges, np.int64).reshape(-1, 2)).tolist()
        passes = [self.passes[start:stop] for start, stop in edges if stop > start]
        if not passes:
            return View(self.source, self.passes[:0], np.empty(0, np.int64))
        # The records of a range of passes lie one after another, here as in the source.
        bounds = [(int(part["first"][0]), int(part["first"][-1] + part["count"][-1])) for part in passes]
        if self._positions is None:
            positions = [np.arange(start, stop) for start, stop in bounds]
        else:
            stretches = np.searchsorted(self._positions, np.array(bounds)).tolist()
            positions = [self._positions[start:stop] for start, stop in stretches]
        return View(self.source, np.concatenate(passes), np.concatenate(positions))

    def info(self, position: int) -> PassInfo:
        """The pass at a position of ``passes``."""
        index, entry, entry_pass, phase, grad, outcome, step, started, duration, _, _ = self.passes[position].item()
        sample_id = self.source.sample_id(index)
        return PassInfo(index, entry, entry_pass, phase, grad, started, sample_id, step, duration, OUTCOMES[outcome])

    def step_of(self, info: PassInfo) -> int | None:
        """The step of a pass; None in a phase that has no steps, or where its session ended before its step did."""
        return info.step if info.step > 0 or (info.step == 0 and info.phase in self.phases_with_steps) else None


def rank_of_passes(view: View) -> Integers | None:
    """The rank of each pass of a view, -1 where it is not known; None where only one process recorded."""
    origins = view.catalog.origins
    if not origins:
        return None
    first = np.array([origin.first_pass for origin in origins], np.int64)
    which = np.searchsorted(first, view.passes["pass_index"], side="right") - 1
    ranks: Integers = np.array([origin.rank for origin in origins], np.int64)[which]
    return ranks


def _unpickled_view(source: Source, passes: StructuredArray, positions: Integers | None, n_passes: int) -> View:
    view = View(source, passes, positions)
    view.n_passes = n_passes
    return view


def metas_of_key(view: View, key: str) -> frozenset[int]:
    """The metas that a key means: those of a module's address, of a site, or of a label, looked up in this order.

    A key that means different records in two of these forms is an error, because the code that uses it would not show
    which ones it reads. ``module:``, ``site:`` or ``label:`` in front of the key says which form is meant.
    """
    metas_by_form: dict[str, frozenset[int]] = {}
    for form in KEY_FORMS:
        metas = _metas_of_form(view, form, key)
        # Two forms that mean the same records leave no doubt about what is read.
        if metas and metas not in metas_by_form.values():
            metas_by_form[form] = metas
    prefix, _, name = key.partition(":")
    if prefix in KEY_FORMS and not metas_by_form:
        metas = _metas_of_form(view, prefix, name)
        if metas:
            metas_by_form[prefix] = metas
    if len(metas_by_form) > 1:
        forms = " or ".join(repr(f"{form}:{key}") for form in metas_by_form)
        raise RecordKeyError(f"{key!r} is ambiguous here; say {forms}")
    if not metas_by_form:
        raise RecordKeyError(_nothing_message(view, key))
    return next(iter(metas_by_form.values()))


def keys_of(view: View, keys: Iterable[str]) -> list[str]:
    """Keys, with the sites that a glob among them matches in its place; a glob that matches none is an error."""
    sites = list(dict.fromkeys(view.site(meta).name for meta in view.metas))
    names: list[str] = []
    for key in keys:
        if is_glob(key) and key not in sites and not _metas_of_any_form(view, key):
            globs = AddressGlobs((key,))
            matching = [site for site in sites if site in globs]
            if not matching:
                raise RecordKeyError(f"no site matches {key!r}; {nearest(key, sites)}")
            names += matching
        else:
            names.append(key)
    return list(dict.fromkeys(names))


def _metas_of_any_form(view: View, key: str) -> bool:
    return any(_metas_of_form(view, form, key) for form in KEY_FORMS)


def base_name(site: Site) -> str:
    """The name of a site without the path of its leaf."""
    return site.name.removesuffix(site.output_address) if site.output_address else site.name


def _metas_of_form(view: View, form: str, key: str) -> frozenset[int]:
    if form == "label":
        return frozenset(meta for meta in view.metas if view.meta(meta).label == key)
    if form == "module":
        return _metas_of_sites(view, lambda site: site.kind == "module_exit" and key in _addresses(site))
    return _metas_of_sites(view, lambda site: key in (site.name, base_name(site)) or key in _other_names(site))


def _addresses(site: Site) -> tuple[str, ...]:
    """All addresses of the module of a site, which has several where ``self.b = self.a``."""
    return (site.module_address, *(site.frames[-1].aliases if site.frames else ()))


def _other_names(site: Site) -> Iterator[str]:
    """The names that a site has by the other addresses of its module."""
    for name in (site.name, base_name(site)):
        yield from (address + name[len(site.module_address) :] for address in _addresses(site)[1:])


def _metas_of_sites(view: View, is_meant: Callable[[Site], bool]) -> frozenset[int]:
    return frozenset(meta for meta in view.metas if is_meant(view.site(meta)))


def _nothing_message(view: View, key: str) -> str:
    if not len(view):
        return f"there is nothing under {key!r}: this recording has no records"
    sites = [view.site(meta).name for meta in view.metas]
    sites_inside = dict.fromkeys(name for name in sites if name.startswith(f"{key}/"))
    if sites_inside:
        return f"there is nothing under {key!r} itself, but there is {' and '.join(map(repr, sites_inside))}"
    prefix, _, name = key.partition(":")
    labels = [view.meta(meta).label for meta in view.metas]
    return f"there is nothing under {key!r}; {did_you_mean(name if prefix in KEY_FORMS else key, [*sites, *labels])}"
