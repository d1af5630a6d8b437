"""Predicates that answer yes or no from a few fields, and the globs that most of them match with."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from fastrec._errors import PredicateError
from fastrec.events.context import STRUCTURAL_FIELDS
from fastrec.predicates._base import ALWAYS, NEVER, Leaf, Matched, Pattern, PredicateBase
from fastrec.predicates._partial_context import KindView, SiteView, Unsettled


class Atom(Leaf, frozen=True):
    """A leaf that answers yes or no, and is settled as soon as the fields that it reads are known.

    Its ``decide`` reads first what is known early, so that it is settled as early as it can be.
    """

    is_plain = True

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        if self.reads.isdisjoint(STRUCTURAL_FIELDS):
            return self  # sooner than by an exception
        try:
            return ALWAYS if self.decide(view) else NEVER
        except Unsettled:
            return self


class Globs:
    """Patterns as in a shell, case-sensitive; ``*`` crosses dots.

    A name that is spelled exactly like a pattern matches it, whatever characters it has.
    """

    __slots__ = ("_known", "_match", "patterns")

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.patterns = tuple(dict.fromkeys(patterns))
        self._match = re.compile("|".join(map(fnmatch.translate, self.patterns))).match
        self._known = dict.fromkeys(self.patterns, True)

    def __contains__(self, name: str) -> bool:
        try:
            return self._known[name]
        except KeyError:
            known = self._known[name] = self._match(name) is not None
            return known

    def __eq__(self, other: object) -> bool:
        return self.patterns == other.patterns if isinstance(other, Globs) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.patterns)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Globs, (self.patterns,))

    def __repr__(self) -> str:
        return ", ".join(map(repr, self.patterns))


class GlobAtom(Atom, frozen=True):
    """An atom that matches globs against one kind of name."""

    name: ClassVar[str]
    matched: ClassVar[Matched]
    globs: Globs

    def own_patterns(self) -> Iterator[Pattern]:
        for pattern in self.globs.patterns:
            yield self.matched, pattern, Globs((pattern,)).__contains__

    def __repr__(self) -> str:
        return f"{self.name}({self.globs!r})"


def globs_of(name: str, given: tuple[object, ...], example: str) -> Globs:
    """The arguments of a public function as globs, if they are strings."""
    if not given:
        raise PredicateError(f"{name}() needs at least one glob, such as {name}({example!r}); '*' matches all")
    for glob in given:
        if isinstance(glob, (list, tuple, set, frozenset)):
            one_by_one = ", ".join(map(repr, glob))
            raise PredicateError(f"{name}() takes its globs one by one: {name}({one_by_one})")
        if not isinstance(glob, str):
            raise PredicateError(
                f"{name}() takes strings such as {name}({example!r}), not {glob!r} ({type(glob).__name__})"
            )
    return Globs(tuple(str(glob) for glob in given))


def count_of(name: str, n: object, what: str) -> int:
    """The argument of a public function as a count, if it is one."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise PredicateError(f"{name}() got {n!r}; give a whole number of {what}, 1 or more")
    return n
