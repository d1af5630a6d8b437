"""Stand-ins for a context of which only some fields are known yet, to settle predicates before an event happens.

    try:
        answer = predicate.decide(SiteView(site))  # the answer for every event at this site
    except Unsettled:
        ...                                        # it depends on more than the site

A predicate's own ``decide`` is asked, so that what a predicate means is written once.
"""

from __future__ import annotations

from typing import Any

from fastrec.events.context import STRUCTURAL_FIELDS
from fastrec.events.sites import Kind, Site


class Unsettled(Exception):
    """The answer depends on a field that is not known yet."""


_SITE_ATTRIBUTES = {name: name for name in STRUCTURAL_FIELDS} | {
    "site": "name",
    "module_stack": "frames",
    "input_output_address": "output_address",
}


class SiteView:
    """A context that has what is known of a site before anything happens there."""

    __slots__ = ("_site",)

    def __init__(self, site: Site) -> None:
        self._site = site

    def __getattr__(self, name: str) -> Any:
        if name not in _SITE_ATTRIBUTES:
            raise Unsettled(name)
        return getattr(self._site, _SITE_ATTRIBUTES[name])


class KindView:
    """A context of which only the kind is known."""

    __slots__ = ("kind",)

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def __getattr__(self, name: str) -> Any:
        raise Unsettled(name)
