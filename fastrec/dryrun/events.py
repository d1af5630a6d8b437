"""What a dry run sees: every event of a pass, without its tensor.

``DryRunListener`` stands where a session would. It gives the engine a tap for every site, and each tap hands an
``Event`` and its value to a callback; afterwards the value is let go.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import count
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from fastrec._errors import FastrecError
from fastrec._torch.collectives import arrived
from fastrec._torch.internals import functorch_level, no_function_modes
from fastrec._torch.tensors import check_copyable
from fastrec.dryrun.links import Linker, Links
from fastrec.engines._protocol import BasicRun, Tap
from fastrec.events.capture import CaptureSpec, check_gradients
from fastrec.events.context import RecordContext, torch_dtype
from fastrec.events.position import Position, RecordMetaMaker, TensorFacts
from fastrec.events.sites import Catalog, PassInfo, RecordMeta, Site
from fastrec.session.options import RecorderOptions

SOURCE_KINDS = ("input", "buffer")

_KEEP_GRAD, _SAVE_GRADIENT = CaptureSpec(keep_grad=True), CaptureSpec(save_gradient=True)


class Event(NamedTuple):
    """One event: where it happened, what would stand in the way of keeping its value, and where that comes from."""

    catalog: Catalog
    meta: RecordMeta
    info: PassInfo
    time: float
    obstacles: Obstacles
    links: Links

    @property
    def site(self) -> Site:
        """The place where it happened."""
        return self.catalog.sites[self.meta.site]

    @property
    def ctx(self) -> RecordContext:
        """The context that a record of it would have; nobody marks a step in a dry run."""
        return RecordContext(self.catalog, self.site, self.meta, self.info, self.time, None)

    def ctx_in(self, info: PassInfo) -> RecordContext:
        """The context that a predicate gets while a pass runs: this pass, or another in which the same happens."""
        return RecordContext(self.catalog, self.site, self.meta, info, self.time, info.step)

    @property
    def nbytes(self) -> int:
        """The bytes of the value itself."""
        return torch_dtype(self.meta.dtype).itemsize * math.prod(self.meta.shape)


class Obstacles(NamedTuple):
    """Why a value can't be copied, kept attached to autograd, or watched for its gradient; None where it can."""

    copy: str | None
    keep_grad: str | None
    save_gradient: str | None

    @classmethod
    def of(cls, value: Tensor) -> Obstacles:
        """The obstacles that a value has."""
        if functorch_level() is not None:
            reason = "UnsupportedTensorError: it ran inside of a functorch transform (vmap, grad, jvp)"
            return cls(reason, None, None)
        return cls(
            _error_of(lambda: check_copyable(arrived(value))),
            _error_of(lambda: check_gradients(value, _KEEP_GRAD)),
            _error_of(lambda: check_gradients(value, _SAVE_GRADIENT)),
        )


def _error_of(check: Callable[[], None]) -> str | None:
    try:
        check()
    except FastrecError as error:
        return f"{type(error).__name__}: {error}"
    return None


class DryRunPass(BasicRun):
    """One pass while it runs."""

    def __init__(self, info: PassInfo) -> None:
        super().__init__()
        self.info = info


class DryRunListener:
    """The listener of a dry run: sees every event, and hands it to a callback."""

    def __init__(self, options: RecorderOptions, on_event: Callable[[Event, Tensor], None]) -> None:
        self._catalog = Catalog()
        self._on_event = on_event
        self._meta_maker = RecordMetaMaker(self._catalog, options.history_size, observed=True)
        self._source_filter = _SourceFilter() if not options.include_source_events else None
        self._entry_counters: dict[str, Callable[[], int]] = {}
        self._next_pass = count().__next__
        self._tracks_parents = options.track_parents
        self._linker = Linker()

    def tap(self, position: Position, site: Site) -> Tap[DryRunPass] | None:
        """The tap of a position: there always is one."""
        if self._source_filter is not None:
            position = self._source_filter.without_sources(position)
        return partial(self._on_value, position, site)

    def may_keep(self, site: Site) -> bool:
        """Whether something could be kept at a site: everything is to be seen."""
        return True

    def begin(self, entry: str) -> DryRunPass:
        """A pass begins."""
        next_entry_pass = self._entry_counters.setdefault(entry, count().__next__)
        catalog = self._catalog
        self._linker.begin()
        return DryRunPass(
            PassInfo(
                self._next_pass(),
                catalog.entries.add(entry),
                next_entry_pass(),
                catalog.phases.add(""),
                torch.is_grad_enabled(),
                perf_counter(),
            )
        )

    def end(self, run: DryRunPass, error: BaseException | None) -> bool:
        """A pass ended."""
        run.info.duration = perf_counter() - run.info.started
        return False

    def _on_value(self, position: Position, site: Site, run: DryRunPass, value: Tensor) -> None:
        with no_function_modes():
            seconds = perf_counter() - run.info.started
            # Of inputs and buffers it is always known that they come from no event.
            parents = run.parents if self._tracks_parents or site.kind in SOURCE_KINDS else None
            if self._source_filter is not None and parents:
                parents = self._source_filter.filter_labels(parents)
            meta = self._meta_maker.make(position, site, TensorFacts.of(value), 0, parents)
            links = self._linker.links(site, meta, value, run.parents or ())
            self._on_event(Event(self._catalog, meta, run.info, seconds, Obstacles.of(value), links), value)


class _SourceFilter:
    """Histories and indices as they are without ``include_source_events``.

    A dry run always sees inputs and buffers, to show them. A recorder without that option would not, so an event must
    not have them in its history, and its index must not count them.
    """

    def __init__(self) -> None:
        # For each event the last one up to it that is no source, as a position of the filtered chain.
        self._filtered: dict[Position, Position | None] = {}
        self._labels: set[str] = set()

    def without_sources(self, position: Position) -> Position:
        """A copy of a position whose history and index leave inputs and buffers out."""
        new_events: list[Position] = []
        event: Position | None = position.previous
        while event is not None and event not in self._filtered:
            new_events.append(event)
            event = event.previous
        last = None if event is None else self._filtered[event]
        for event in reversed(new_events):
            if event.site.kind not in SOURCE_KINDS:
                last = _copy_after(event, last)
            self._filtered[event] = last
        copy = _copy_after(position, last)
        if position.site.kind in SOURCE_KINDS:
            copy.event_index = None
            self._labels.add(position.label)
        return copy

    def filter_labels(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Labels of parents without those of inputs and buffers."""
        return tuple(label for label in labels if label not in self._labels)


def _copy_after(position: Position, previous: Position | None) -> Position:
    copy = Position(position.site, previous)
    for name in ("number", "label", "op_index", "module_pass", "stack_passes"):
        setattr(copy, name, getattr(position, name))
    copy.event_index = 0 if previous is None or previous.event_index is None else previous.event_index + 1
    return copy
