"""What a session says when it closes with less than was asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from fastrec._errors import FastrecWarning, near
from fastrec._plan import Plan
from fastrec._session import Session
from fastrec.engines._protocol import Engine
from fastrec.predicates._base import Matched


def warn_about_nothing(session: Session, plan: Plan, engine: Engine) -> None:
    """Warn where no pass ran, or where a glob matched nothing that did."""
    for message in _complaints(session, plan, engine):
        warnings.warn(message, FastrecWarning, stacklevel=3)


def _complaints(session: Session, plan: Plan, engine: Engine) -> Iterable[str]:
    if not len(session.catalog.entries):
        yield (
            "no pass was recorded: the model was not called inside of the block, or only in another process, inside "
            "of compiled code, or while the recorder was paused"
        )
        return
    frames, called = engine.frames(), engine.called()
    known: dict[Matched, tuple[str, set[str]]] = {
        "op": ("op type that ran", session.seen_layer_types),
        "module": ("module address", {a for frame in frames for a in (frame.module_address, *frame.aliases)}),
        "module_type": ("module class", {frame.module_type for frame in frames}),
        "phase": ("phase of a pass", set(session.catalog.phases.items)),
        "entry": ("entry of a pass", set(session.catalog.entries.items)),
    }
    # Where no pass was watched, because nothing could be kept of any, nobody knows what ran in them.
    watched = bool(called or session.seen_layer_types)
    for option, predicate in (("keep_op", plan.keep_op), ("keep_module", plan.keep_module)):
        for what, pattern, matches in predicate.patterns(*known):
            told, names = known[what]
            if what == "op" and not watched:
                continue
            matched = sorted(filter(matches, names))
            if not matched:
                yield f"{option}: {pattern!r} matched no {told}; {near(pattern, sorted(names))}"
            elif what == "module" and watched and called.isdisjoint(matched):
                yield f"{option}: {pattern!r} matched {matched[0]!r}, which was not called in any pass"
