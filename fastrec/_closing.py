"""What a session says when it closes with less than was asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from fastrec._errors import FastrecWarning, near
from fastrec._plan import Plan
from fastrec._session import Session
from fastrec._sites import Frame


def warn_about_nothing(session: Session, plan: Plan, frames: Sequence[Frame]) -> None:
    """Warn where no pass ran, or where a glob matched nothing that did."""
    for message in _complaints(session, plan, frames):
        warnings.warn(message, FastrecWarning, stacklevel=3)


def _complaints(session: Session, plan: Plan, frames: Sequence[Frame]) -> Iterable[str]:
    if not session.passes_begun:
        yield (
            "no pass was recorded: the model was not called inside of the block, or only in another process, inside "
            "of compiled code, or while the recorder was paused"
        )
        return
    addresses = sorted({address for frame in frames for address in (frame.module_address, *frame.aliases)})
    for option, predicate in (("keep_op", plan.keep_op), ("keep_module", plan.keep_module)):
        for what, pattern, matches in predicate.patterns():
            known = sorted(session.seen_layer_types) if what == "op" else addresses
            if not any(matches(name) for name in known):
                told = "op type that ran" if what == "op" else "module address"
                yield f"{option}: {pattern!r} matched no {told}; {near(pattern, known)}"
