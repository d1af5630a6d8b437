"""From where an event happened and what its value is like to the meta that its records share."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastrec.events.sites import Catalog, RecordMeta, Site

Triples = tuple[tuple[int, int, str], ...]


class RecordMetaMaker:
    """Makes the metas of a session.

    ``history_size`` bounds the recent events and ops; ``observed`` is False where an engine sees no ops, so that
    nothing can be said about what came before.
    """

    def __init__(self, catalog: Catalog, history_size: int, *, observed: bool) -> None:
        self._catalog = catalog
        self._history_size = history_size
        self._observed = observed

    def make(
        self, place: Position, site: Site, value: Tensor, spec: int, parents: tuple[str, ...] | None
    ) -> RecordMeta:
        """The meta of a value at a place."""
        return self.of(
            place,
            site,
            (tuple(value.shape), str(value.dtype).removeprefix("torch."), str(value.device), value.requires_grad),
            spec,
            parents,
        )

    def of(
        self,
        place: Position,
        site: Site,
        tensor_facts: tuple[tuple[int, ...], str, str, bool],
        spec: int,
        parents: tuple[str, ...] | None,
    ) -> RecordMeta:
        """The same from shape, dtype, device and requires_grad."""
        seen = self._observed
        if site.kind in ("module_enter", "module_exit"):
            label = f"{site.name}:{place.number}"
        else:
            label = place.label + (site.output_address if site.kind == "op" else "")
        return RecordMeta(
            site=self._catalog.sites.add(site),
            label=label,
            number=place.number,
            op_index=place.op_index if seen else None,
            event_index=place.event_index if seen else None,
            module_pass=place.module_pass,
            stack_passes=place.stack_passes,
            shape=tensor_facts[0],
            dtype=tensor_facts[1],
            device=tensor_facts[2],
            requires_grad=tensor_facts[3],
            spec=spec,
            recent_events=self._recent(place, ops_only=False) if seen else None,
            recent_ops=self._recent(place, ops_only=True) if seen else None,
            parents=parents,
        )

    def _recent(self, place: Position, *, ops_only: bool) -> Triples:
        found: list[tuple[int, int, str]] = []
        for event in _before(place):
            if len(found) == self._history_size:
                break
            if not ops_only or event.site.kind == "op":
                if event.site_id is None:
                    event.site_id = self._catalog.sites.add(event.site)
                found.append((event.site_id, event.number, event.label))
        return tuple(reversed(found))


def _before(place: Position) -> Iterator[Position]:
    event = place.previous
    while event is not None:
        yield event
        event = event.previous


class Position:
    """Where in a pass an event happens, as far as the engine knows it before it looks at the value.

    A chain: ``previous`` is the event before, so the recent history costs nothing until somebody reads it.
    ``frame`` numbers the composite that the event runs in, 0 outside; history stays within what is visible there.
    """

    __slots__ = (
        "event_index",
        "label",
        "module_pass",
        "number",
        "op_index",
        "previous",
        "site",
        "site_id",
        "stack_passes",
    )

    def __init__(self, site: Site, previous: Position | None) -> None:
        self.site = site
        self.site_id: int | None = None  # its number in the catalog, once somebody asked for it
        self.previous = previous
        self.number = 0
        self.label = ""
        self.op_index: int | None = None
        self.event_index: int | None = None
        self.module_pass = 1
        self.stack_passes: tuple[int, ...] = ()
