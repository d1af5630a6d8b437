"""What a dry run sees: every event of a pass, without its tensor."""

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
from fastrec._torch.internals import functorch_level, no_function_modes
from fastrec._torch.tensors import check_copyable
from fastrec.dryrun.links import Linker, Links
from fastrec.engines._protocol import Tap
from fastrec.events.capture import CaptureSpec, check_gradients
from fastrec.events.context import RecordContext, torch_dtype
from fastrec.events.position import Position, RecordMetaMaker
from fastrec.events.sites import Catalog, PassInfo, RecordMeta, Site
from fastrec.session.options import RecorderOptions

SOURCES = ("input", "buffer")


class Obstacles(NamedTuple):
    """Why a value can't be copied, kept attached to autograd, or waited on for its gradient; None where it can."""

    copy: str | None
    keep_grad: str | None
    save_gradient: str | None


class Event(NamedTuple):
    """One event: where it happened, what keeping its value would have met, and where its value comes from."""

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
        """The event as a record of it would tell it: nobody marks a step in a dry run."""
        return RecordContext(self.catalog, self.site, self.meta, self.info, self.time, None)

    def asked(self, info: PassInfo) -> RecordContext:
        """What a predicate looks at while a pass runs, this one or another in which the same happens."""
        return RecordContext(self.catalog, self.site, self.meta, info, self.time, info.step)

    @property
    def nbytes(self) -> int:
        """The bytes of the value itself."""
        return torch_dtype(self.meta.dtype).itemsize * math.prod(self.meta.shape)


class DryPass:
    """One pass while it runs."""

    __slots__ = ("info", "parents")

    def __init__(self, info: PassInfo) -> None:
        self.info = info
        self.parents: tuple[str, ...] | None = None


class Watch:
    """The listener of a dry run: has everything shown, tells each event, and lets the value go."""

    def __init__(self, options: RecorderOptions, tell: Callable[[Event, Tensor], None]) -> None:
        self.catalog = Catalog()
        self.infos: list[PassInfo] = []
        self._tell = tell
        self._metas = RecordMetaMaker(self.catalog, options.history_size, observed=True)
        self._history = _History() if not options.include_source_events else None
        self._entries: dict[str, Callable[[], int]] = {}
        self._tracks_parents = options.track_parents
        self._linker = Linker()

    def tap(self, place: Position, site: Site) -> Tap | None:
        """The tap of a place: there always is one."""
        if self._history is not None:
            place = self._history.without_sources(place)
        return partial(self._meet, place, site)

    def may_keep(self, site: Site) -> bool:
        """Whether something could be kept at a site: all is to be seen."""
        return True

    def begin(self, entry: str) -> DryPass:
        """A pass begins."""
        number = self._entries.setdefault(entry, count().__next__)()
        catalog = self.catalog
        info = PassInfo(
            len(self.infos),
            catalog.entries.add(entry),
            number,
            catalog.phases.add(""),
            torch.is_grad_enabled(),
            perf_counter(),
        )
        self.infos.append(info)
        self._linker.begin()
        return DryPass(info)

    def end(self, run: DryPass, error: BaseException | None) -> bool:
        """A pass ended."""
        run.info.duration = perf_counter() - run.info.started
        return False

    def _meet(self, place: Position, site: Site, run: DryPass, value: Tensor) -> None:
        with no_function_modes():
            now = perf_counter()
            # Of inputs and buffers it is always known that they come from no event.
            parents = run.parents if self._tracks_parents or site.kind in SOURCES else None
            if self._history is not None and parents:
                parents = self._history.less_sources(parents)
            # A nested tensor has no shape of its own.
            facts = () if value.is_nested else tuple(value.shape), _name(value), str(value.device), value.requires_grad
            meta = self._metas.of(place, site, facts, 0, parents)
            links = self._linker.links(site, meta, value, run.parents or ())
            self._tell(Event(self.catalog, meta, run.info, now - run.info.started, _obstacles(value), links), value)


class _History:
    """Events as they count where inputs and buffers are none, as long as nobody asked for those."""

    def __init__(self) -> None:
        self._before: dict[Position, Position | None] = {}
        self._labels: set[str] = set()

    def without_sources(self, place: Position) -> Position:
        """A place whose history and index leave the inputs and buffers out."""
        chain: list[Position] = []
        walk: Position | None = place.previous
        while walk is not None and walk not in self._before:
            chain.append(walk)
            walk = walk.previous
        last = None if walk is None else self._before[walk]
        for event in reversed(chain):
            if event.site.kind not in SOURCES:
                last = _moved(event, last)
            self._before[event] = last
        moved = _moved(place, last)
        if place.site.kind in SOURCES:
            moved.event_index = None
            self._labels.add(place.label)
        return moved

    def less_sources(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Labels of parents, less those of inputs and buffers."""
        return tuple(label for label in labels if label not in self._labels)


def _moved(place: Position, previous: Position | None) -> Position:
    moved = Position(place.site, previous)
    for name in ("number", "label", "op_index", "module_pass", "stack_passes"):
        setattr(moved, name, getattr(place, name))
    moved.event_index = 0 if previous is None or previous.event_index is None else previous.event_index + 1
    return moved


def _name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _obstacles(value: Tensor) -> Obstacles:
    if functorch_level() is not None:
        wrapped = "UnsupportedTensorError: it ran inside of a functorch transform (vmap, grad, jvp)"
        return Obstacles(wrapped, None, None)
    return Obstacles(
        _why_not(lambda: check_copyable(value)),
        _why_not(lambda: check_gradients(value, _ATTACHED)),
        _why_not(lambda: check_gradients(value, _WATCHED)),
    )


_ATTACHED = CaptureSpec(keep_grad=True)

_WATCHED = CaptureSpec(save_gradient=True)


def _why_not(check: Callable[[], None]) -> str | None:
    try:
        check()
    except FastrecError as error:
        return f"{type(error).__name__}: {error}"
    return None
