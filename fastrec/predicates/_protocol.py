"""What a session asks of a predicate, and what it shows it.

``PredicateBase`` implements it for everything that a user can write. The session wraps a predicate that raised when it
was narrowed in another implementation, which raises the same error at each event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fastrec.events.capture import CaptureSpec
from fastrec.events.sites import Site

Decision = bool | CaptureSpec | Mapping[str, Any]
"""What a predicate says of an event: keep or not, or keep with this spec, or with these fields changed."""


class Context(Protocol):
    """What a predicate may look at: a whole context, or a stand-in that has some fields. See ``RecordContext``."""

    def __getattr__(self, name: str) -> Any: ...


class Predicate(Protocol):
    """A question about one event, narrowed once per site."""

    @property
    def reads(self) -> frozenset[str]:
        """The context fields that it may look at."""

    def narrow(self, site: Site) -> Predicate:
        """What is left to ask at this site: a constant (never, always), or a smaller question."""

    def decide(self, ctx: Context) -> Decision:
        """Whether to keep the event of this context, and how."""
