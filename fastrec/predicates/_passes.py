"""Predicates of the pass that an event belongs to."""

from __future__ import annotations

from typing import ClassVar

from fastrec._contracts import Context
from fastrec.predicates._atoms import Atom, GlobAtom, count_of, globs_of
from fastrec.predicates._base import Matched


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
    return Phase(globs_of("phase", names, "rollout"))


def entry(*names: str) -> Entry:
    """The passes that entered at some modules or regions.

    >>> from fastrec.predicates import entry
    >>> entry("actor.*")
    entry('actor.*')

    Arguments:
        names: globs of entries: the address of the outermost module that was called, after its root's name
            where there are several roots, or a region's name.

    Raises PredicateError for anything but strings, and without any.
    """
    return Entry(globs_of("entry", names, "actor.*"))


def grad_enabled() -> GradEnabled:
    """The passes that began with gradients on.

    >>> from fastrec.predicates import grad_enabled, op
    >>> op("tanh") & ~grad_enabled()
    op('tanh') & ~grad_enabled()
    """
    return GradEnabled()
