"""What can be said about a whole pass before it runs."""

from __future__ import annotations

from fastrec._context import PASS_FIELDS
from fastrec._contracts import Context
from fastrec.predicates._base import And, Not, Or, PredicateBase, With


def looks_ahead(predicate: PredicateBase) -> bool:
    """Whether some part of a predicate only asks about the pass."""
    return any(leaf.reads and leaf.reads <= PASS_FIELDS for leaf in predicate.leaves())


def may_keep_in(predicate: PredicateBase, ctx: Context) -> bool:
    """Whether some event of a pass could be kept; of the context only the fields of the pass are known."""
    return _could(predicate, ctx, True)


def _could(predicate: PredicateBase, ctx: Context, answer: bool) -> bool:
    """Whether, at some event, it could answer so."""
    if isinstance(predicate, Not):
        return _could(predicate.part, ctx, not answer)
    if isinstance(predicate, With):
        return _could(predicate.part, ctx, answer)
    if isinstance(predicate, And | Or):
        all_have_to = isinstance(predicate, And) is answer
        return (all if all_have_to else any)(_could(part, ctx, answer) for part in predicate.parts)
    if predicate.reads <= PASS_FIELDS:
        return (predicate.decide(ctx) is not False) is answer
    return True
