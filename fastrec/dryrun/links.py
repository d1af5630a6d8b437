"""Which event each value of a pass comes from, so that a dry run can be drawn as a graph.

A value is shown by several events: by the op that computed it, by the composite that the op ran in, and by each module
that it goes into and comes out of. The first of them is its origin, and a node of the drawing.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

from torch import Tensor

from fastrec.events.sites import RecordMeta, Site


class Links(NamedTuple):
    """The number of the event that an event's value comes from, its own or an earlier one, and those that this read."""

    origin: int
    sources: tuple[int, ...]


class Linker:
    """Links the events of a dry run, in order."""

    def __init__(self) -> None:
        self._count = 0
        self._origins: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # by the identity of the value
        self._by_label: dict[str, int] = {}
        self._entered: dict[tuple[str, int], list[int]] = {}

    def begin(self) -> None:
        """A pass begins: labels count anew, values from the one before stay known."""
        self._by_label.clear()
        self._entered.clear()

    def links(self, site: Site, meta: RecordMeta, value: Tensor, parents: tuple[str, ...]) -> Links:
        """The links of the next event; ``parents`` are the labels of the values that it read."""
        number = self._count
        self._count += 1
        known = self._origins.get(id(value))
        computes = site.kind == "op" and site.is_bottom_level_func
        origin = known[1] if known is not None and known[0]() is value and not computes else number
        sources = [self._by_label[label] for label in parents if label in self._by_label]
        call = site.module_address, meta.module_pass
        if site.kind == "module_enter":
            self._entered.setdefault(call, []).append(origin)
        elif site.kind == "module_exit" and origin == number:
            sources += self._entered.get(call, ())  # a module of whose inside nothing was seen
        self._origins[id(value)] = weakref.ref(value), origin
        self._by_label[meta.label] = origin
        return Links(origin, tuple(dict.fromkeys(source for source in sources if source != origin)))
