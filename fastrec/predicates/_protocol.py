"""What the parts promise each other: predicates, engines and sinks slot in by these protocols alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fastrec.events.capture import CaptureSpec
from fastrec.events.sites import Site

Decision = bool | CaptureSpec | Mapping[str, Any]
"""What a predicate says of an event: keep or not, or keep with this spec, or with these fields changed."""


class Context(Protocol):
    """What a predicate may look at; ``RecordContext`` documents the fields."""

    def __getattr__(self, name: str) -> Any: ...


class Predicate(Protocol):
    """Context -> keep or not, and how; narrowed once per site."""

    @property
    def reads(self) -> frozenset[str]:
        """The context fields that it may look at."""

    def narrow(self, site: Site) -> Predicate:
        """What is left to ask at this site: a constant (never, always), or a rest."""

    def decide(self, ctx: Context) -> Decision:
        """Whether to keep the event of this context, and how."""
