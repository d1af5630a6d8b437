"""Predicates of the pass that an event belongs to, and what they say about a whole pass before it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from fastrec.events.context import PASS_FIELDS
from fastrec.predicates._addresses import AddressGlobs
from fastrec.predicates._base import And, Constant, Matched, Not, Or, PredicateBase, With
from fastrec.predicates._globs import Atom, GlobAtom, Globs, count_of, globs_of
from fastrec.predicates._protocol import Context


class Every(Atom, frozen=True):
    """See ``every``."""

    n: int
    reads = frozenset({"entry_pass"})

    def decide(self, ctx: Context) -> bool:
        return not ctx.entry_pass % self.n

    def __repr__(self) -> str:
        return f"every({self.n})"


class First(Atom, frozen=True):
    """See ``first``."""

    n: int
    reads = frozenset({"entry_pass"})

    def decide(self, ctx: Context) -> bool:
        return bool(ctx.entry_pass < self.n)

    def __repr__(self) -> str:
        return f"first({self.n})"


class Phase(GlobAtom, frozen=True):
    """See ``phase``."""

    name = "phase"
    matched: ClassVar[Matched] = "phase"
    reads = frozenset({"phase"})

    def decide(self, ctx: Context) -> bool:
        return ctx.phase in self.globs


class Entry(GlobAtom, frozen=True):
    """See ``entry``."""

    name = "entry"
    matched: ClassVar[Matched] = "entry"
    reads = frozenset({"entry"})

    def decide(self, ctx: Context) -> bool:
        return ctx.entry in self.globs


class GradEnabled(Atom, frozen=True):
    """See ``grad_enabled``."""

    reads = frozenset({"grad_enabled"})

    def decide(self, ctx: Context) -> bool:
        return bool(ctx.grad_enabled)

    def __repr__(self) -> str:
        return "grad_enabled()"


def every(n: int) -> Every:
    """Every n-th pass of each entry: the passes 0, n, 2n, ...

    >>> from fastrec.predicates import every, op
    >>> op("tanh") & every(10)
    op('tanh') & every(10)

    Arguments:
        n: a whole number, 1 or more.

    Raises PredicateError for anything else.
    """
    return Every(count_of("every", n, "passes"))


def first(n: int) -> First:
    """The first n passes of each entry.

    >>> from fastrec.predicates import first, op
    >>> op("tanh") & first(100)
    op('tanh') & first(100)

    Arguments:
        n: a whole number, 1 or more.

    Raises PredicateError for anything else.
    """
    return First(count_of("first", n, "passes"))


def phase(*names: str) -> Phase:
    """The passes of some phases.

    >>> from fastrec.predicates import phase
    >>> phase("rollout", "eval*")
    phase('rollout', 'eval*')

    Arguments:
        names: globs of the names given to ``rec.phase``.

    Raises PredicateError for anything but strings, and without any.
    """
    return Phase(globs_of("phase", names, "rollout", Globs))


def entry(*names: str) -> Entry:
    """The passes that entered at some modules or regions.

    >>> from fastrec.predicates import entry
    >>> entry("actor.*")
    entry('actor.*')

    Arguments:
        names: globs of entries, in which ``*`` stays within one level, as in ``module``. An entry is the address
            of the outermost module that was called (with several roots, the root's name first), or the name of
            a region.

    Raises PredicateError for anything but strings, and without any.
    """
    return Entry(globs_of("entry", names, "actor.*", AddressGlobs))


def grad_enabled() -> GradEnabled:
    """The passes that began with gradients on.

    >>> from fastrec.predicates import grad_enabled, op
    >>> op("tanh") & ~grad_enabled()
    op('tanh') & ~grad_enabled()
    """
    return GradEnabled()


# --- Whole passes -----------------------------------------------------------------------------------------------------

PassQuestion = Callable[[Context], bool] | bool
"""Whether something can happen in a pass: yes, no, or a question of a context that has the pass's fields alone."""


def pass_filter(predicate: PredicateBase, answer: bool = True) -> PassQuestion:
    """Whether a predicate could give this answer at some event of a pass.

    >>> from fastrec.predicates import every, op
    >>> pass_filter(op("relu")), pass_filter(op("relu") & every(10))
    (True, <function ...>)

    A pass in which nothing could be kept is not watched at all. A part that is not about the pass may answer either way
    at one event or another, so both answers are possible. ``~`` asks its part for the opposite answer.
    """
    if isinstance(predicate, Not):
        return pass_filter(predicate.part, not answer)
    if isinstance(predicate, With):
        return pass_filter(predicate.part, answer)
    if isinstance(predicate, And | Or):
        parts = [pass_filter(part, answer) for part in predicate.parts]
        return all_of(parts) if isinstance(predicate, And) is answer else any_of(parts)
    if isinstance(predicate, Constant):
        return (predicate.decision is not False) is answer
    if predicate.reads <= PASS_FIELDS:
        decide = predicate.decide
        return (lambda ctx: decide(ctx) is not False) if answer else (lambda ctx: decide(ctx) is False)
    return True


def all_of(parts: list[PassQuestion]) -> PassQuestion:
    """Whether all parts say yes."""
    questions = [part for part in parts if not isinstance(part, bool)]
    if False in parts or not questions:
        return False not in parts
    return questions[0] if len(questions) == 1 else lambda ctx: all(question(ctx) for question in questions)


def any_of(parts: list[PassQuestion]) -> PassQuestion:
    """Whether any part says yes."""
    questions = [part for part in parts if not isinstance(part, bool)]
    if True in parts or not questions:
        return True in parts
    return questions[0] if len(questions) == 1 else lambda ctx: any(question(ctx) for question in questions)
