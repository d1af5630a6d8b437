"""From a key to the records that it means: a module's address, a site, or a label."""

from __future__ import annotations

from collections.abc import Callable

from fastrec._errors import RecordKeyError, near
from fastrec._recording_view import View
from fastrec.events.sites import Site

FORMS = ("module", "site", "label")


def kinds_of(view: View, key: str) -> frozenset[int]:
    """The variants that a key means.

    A key that means different records in two forms is an error: nobody could tell from the code which it was.
    """
    form, _, rest = key.partition(":")
    hits: dict[str, frozenset[int]] = {}
    for name in FORMS:
        found = _variants(view, name, key)
        if found and found not in hits.values():
            hits[name] = found
    if form in FORMS and not hits:
        found = _variants(view, form, rest)
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


def _variants(view: View, form: str, key: str) -> frozenset[int]:
    if form == "label":
        return frozenset(kind for kind in view.kinds if view.variant(kind).label == key)
    if form == "module":
        return _of_sites(view, lambda site: site.kind == "module_exit" and site.module_address == key)
    return _of_sites(view, lambda site: key in (site.name, base_name(site)))


def _of_sites(view: View, wanted: Callable[[Site], bool]) -> frozenset[int]:
    return frozenset(kind for kind in view.kinds if wanted(view.site(kind)))


def _nothing(view: View, key: str) -> str:
    if not len(view):
        return f"there is nothing under {key!r}: this recording has no records"
    sites = [view.site(kind).name for kind in view.kinds]
    known = [*sites, *(view.variant(kind).label for kind in view.kinds)]
    form, _, rest = key.partition(":")
    within = [name for name in sites if name.startswith(f"{key}/")]
    if within:
        return f"there is nothing under {key!r} itself, but there is {' and '.join(map(repr, dict.fromkeys(within)))}"
    return f"there is nothing under {key!r}; {near(rest if form in FORMS else key, known)}"
