"""Stand-ins for a context of which only some fields are known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastrec._errors import ContextFieldError, PredicateError, did_you_mean
from fastrec.events.context import FIELDS, STRUCTURAL_FIELDS
from fastrec.events.sites import Frame, Kind, Site
from fastrec.predicates._protocol import Context


class Unsettled(Exception):
    """The answer hangs on a field that is not known yet."""


_IN_SITE = {name: name for name in STRUCTURAL_FIELDS} | {
    "site": "name",
    "module_stack": "frames",
    "input_output_address": "output_address",
}


class SiteView:
    """All that is known of a site before anything happens there."""

    __slots__ = ("_site",)

    def __init__(self, site: Site) -> None:
        self._site = site

    def __getattr__(self, name: str) -> Any:
        if name not in _IN_SITE:
            raise Unsettled(name)
        return getattr(self._site, _IN_SITE[name])


class KindView:
    """An event of which only the kind is known."""

    __slots__ = ("kind",)

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def __getattr__(self, name: str) -> Any:
        raise Unsettled(name)


class StructuralView:
    """A context that shows its structural fields and refuses all others."""

    __slots__ = ("_asked", "_ctx")

    def __init__(self, ctx: Context, asked: object) -> None:
        self._ctx = ctx
        self._asked = asked

    @property
    def module_stack(self) -> tuple[StructuralFrame, ...]:
        return tuple(StructuralFrame(frame, self._asked) for frame in self._ctx.module_stack)

    def __getattr__(self, name: str) -> Any:
        if name in STRUCTURAL_FIELDS:
            return getattr(self._ctx, name)
        if name in FIELDS:
            raise _not_structural(self._asked, name, sorted(STRUCTURAL_FIELDS))
        raise ContextFieldError(f"a context has no field {name!r}; {did_you_mean(name, FIELDS)}")


class StructuralFrame:
    """A module on the stack of a StructuralView."""

    __slots__ = ("_asked", "aliases", "module_address", "module_type")

    def __init__(self, frame: Frame, asked: object) -> None:
        self._asked = asked
        self.module_address = frame.module_address
        self.module_type = frame.module_type
        self.aliases = frame.aliases

    def __getattr__(self, name: str) -> Any:
        if name == "pass_index":
            raise _not_structural(self._asked, "module_stack[...].pass_index", Frame.__struct_fields__)
        raise ContextFieldError(f"a module on the stack has no {name!r}; {did_you_mean(name, Frame.__struct_fields__)}")


def _not_structural(asked: object, name: str, allowed: Iterable[str]) -> PredicateError:
    return PredicateError(
        f"{asked!r} read {name}, which is not the same in every pass; a structural function may read "
        f"{', '.join(allowed)}. Give the function itself, without structural(), to have it asked "
        "at every event"
    )
