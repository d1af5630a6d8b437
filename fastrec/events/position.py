"""Where in a pass an event happens, and the meta that records made there share.

An engine knows the ``Position`` of an event before it looks at the value. A tap that meets a new kind of value there
asks for a meta once, and every later record of such a value carries the number of that meta:

    metas = RecordMetaMaker(catalog, history_size=8, observed=True)
    meta = metas.make(position, site, TensorFacts.of(value), spec_number, parents=None)
    number = catalog.metas.add(meta)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastrec.events.context import dtype_name
from fastrec.events.sites import Catalog, RecordMeta, Site


class Position:
    """An event's place in the order of its pass.

    Positions form a chain: ``previous`` is the event before, so that the recent history costs nothing until somebody
    reads it. Ops inside a composite are in the chain of that composite only, so history and numbers outside are the
    same whether or not somebody looks inside.
    """

    __slots__ = (
        "event_index",
        "label",
        "module_pass",
        "number",
        "op_index",
        "previous",
        "recent",
        "site",
        "site_id",
        "stack_passes",
    )

    def __init__(self, site: Site, previous: Position | None) -> None:
        self.site = site
        self.site_id: int | None = None  # its number in the catalog, once it was asked for
        self.previous = previous
        self.recent: Recent | None = None  # once somebody asked
        self.number = 0
        self.label = ""
        self.op_index: int | None = None
        self.event_index: int | None = None
        self.module_pass = 1
        self.stack_passes: tuple[int, ...] = ()


Triple: TypeAlias = tuple[int, int, str]
"""An earlier event: the number of its site, its number and its label."""


class Recent(NamedTuple):
    """The last events and the last ops before a position, newest last."""

    events: tuple[Triple, ...]
    ops: tuple[Triple, ...]


class TensorFacts(NamedTuple):
    """What a record says about its tensor, apart from the values."""

    shape: tuple[int, ...]
    dtype: str
    device: str
    requires_grad: bool

    @classmethod
    def of(cls, value: Tensor) -> TensorFacts:
        """The facts of a tensor; a nested one has no single shape, and gets an empty one."""
        shape = () if value.is_nested else tuple(value.shape)
        return cls(shape, _dtype_name(value.dtype), _device_name(value.device), value.requires_grad)


_dtype_name = cache(dtype_name)
_device_name: Callable[[torch.device], str] = cache(str)

NO_TENSOR = TensorFacts((), "float32", "cpu", False)
"""Stands in where a predicate is asked that reads none of these."""


class RecordMetaMaker:
    """Makes the metas of a session.

    Arguments:
        catalog: where sites get their numbers.
        history_size: how many recent events and ops a meta holds at most.
        observed: False where the engine sees no ops. Then indices and history would be wrong, and are None.
    """

    def __init__(self, catalog: Catalog, history_size: int, *, observed: bool) -> None:
        self.catalog = catalog
        self._history_size = history_size
        self._observed = observed

    def make(
        self, position: Position, site: Site, facts: TensorFacts, spec: int, parents: tuple[str, ...] | None
    ) -> RecordMeta:
        """The meta of values at a position; ``site`` is that of one leaf where the value is nested."""
        observed = self._observed
        number = self._site_number(position) if site is position.site else self.catalog.sites.add(site)
        recent = self._recent(position) if observed else None
        if site.kind in ("module_enter", "module_exit"):
            label = f"{site.name}:{position.number}"
        else:
            label = position.label + (site.output_address if site.kind == "op" else "")
        return RecordMeta(
            site=number,
            label=label,
            number=position.number,
            op_index=position.op_index if observed else None,
            event_index=position.event_index if observed else None,
            module_pass=position.module_pass,
            stack_passes=position.stack_passes,
            shape=facts.shape,
            dtype=facts.dtype,
            device=facts.device,
            requires_grad=facts.requires_grad,
            spec=spec,
            recent_events=recent.events if recent else None,
            recent_ops=recent.ops if recent else None,
            parents=parents,
        )

    def _recent(self, position: Position) -> Recent:
        """What came before a position. Positions share what they have in common: most are asked for in their order."""
        recent = position.recent
        if recent is None:
            previous = position.previous
            before = None if previous is None else previous.recent
            if previous is None or before is None:
                events, ops = self._look_back(position, ops_only=False), self._look_back(position, ops_only=True)
                ops = events if ops == events else ops
            else:
                triple = self._triple(previous)
                events = self._last((*before.events, triple))
                if previous.site.kind != "op":
                    ops = before.ops
                else:
                    ops = events if before.ops is before.events else self._last((*before.ops, triple))
            recent = position.recent = Recent(events, ops)
        return recent

    def _look_back(self, position: Position, *, ops_only: bool) -> tuple[Triple, ...]:
        events = (event for event in _earlier_events(position) if not ops_only or event.site.kind == "op")
        return tuple(map(self._triple, islice(events, self._history_size)))[::-1]

    def _last(self, triples: tuple[Triple, ...]) -> tuple[Triple, ...]:
        return triples[-self._history_size :] if self._history_size else ()

    def _triple(self, event: Position) -> Triple:
        return self._site_number(event), event.number, event.label

    def _site_number(self, event: Position) -> int:
        """The number of an event's site; looked up once, because that hashes all modules around it."""
        if event.site_id is None:
            event.site_id = self.catalog.sites.add(event.site)
        return event.site_id


def _earlier_events(position: Position) -> Iterator[Position]:
    event = position.previous
    while event is not None:
        yield event
        event = event.previous
