"""What can be said about a whole pass before it runs."""

from __future__ import annotations

from collections.abc import Callable

from fastrec._contracts import Context
from fastrec.events.context import PASS_FIELDS
from fastrec.predicates._base import And, Constant, Not, Or, PredicateBase, With

Ahead = Callable[[Context], bool] | bool
"""Whether some event of a pass could be kept; of the context only the fields of the pass are known."""


def ahead(predicate: PredicateBase, answer: bool = True) -> Ahead:
    """Whether, at some event of a pass, a predicate could answer so: always, never, or a question about the pass."""
    if isinstance(predicate, Not):
        return ahead(predicate.part, not answer)
    if isinstance(predicate, With):
        return ahead(predicate.part, answer)
    if isinstance(predicate, And | Or):
        parts = [ahead(part, answer) for part in predicate.parts]
        return all_of(parts) if isinstance(predicate, And) is answer else any_of(parts)
    if isinstance(predicate, Constant):
        return (predicate.decision is not False) is answer
    if predicate.reads <= PASS_FIELDS:
        decide = predicate.decide
        return (lambda ctx: decide(ctx) is not False) if answer else (lambda ctx: decide(ctx) is False)
    return True


def all_of(parts: list[Ahead]) -> Ahead:
    """Whether all of some questions say yes."""
    asked = [part for part in parts if not isinstance(part, bool)]
    if False in parts or not asked:
        return False not in parts
    return asked[0] if len(asked) == 1 else lambda ctx: all(part(ctx) for part in asked)


def any_of(parts: list[Ahead]) -> Ahead:
    """Whether any of some questions says yes."""
    asked = [part for part in parts if not isinstance(part, bool)]
    if True in parts or not asked:
        return True in parts
    return asked[0] if len(asked) == 1 else lambda ctx: any(part(ctx) for part in asked)
