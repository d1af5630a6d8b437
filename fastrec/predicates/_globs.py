"""What the built-in predicates share: a yes or no from a few fields, and the globs that most of them match with."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

from fastrec._errors import PredicateError
from fastrec.events.context import STRUCTURAL_FIELDS
from fastrec.predicates._base import ALWAYS, NEVER, Leaf, Matched, Pattern, PredicateBase
from fastrec.predicates._partial_context import KindView, SiteView, Unsettled


class Atom(Leaf, frozen=True):
    """A leaf that answers yes or no, and is settled as soon as the fields that its answer depends on are known.

    So ``decide`` reads those fields first that are known early: the kind of an event before its modules.
    """

    is_plain = True

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        if self.reads.isdisjoint(STRUCTURAL_FIELDS):
            return self  # the exception below would say the same, but more slowly
        try:
            return ALWAYS if self.decide(view) else NEVER
        except Unsettled:
            return self


class Globs:
    """Patterns as in a shell, case-sensitive, for names that have no levels.

    A name that is spelled exactly like a pattern matches it, whatever characters it has.
    """

    __slots__ = ("_match", "_matches", "patterns")

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.patterns = tuple(dict.fromkeys(patterns))
        self._match = re.compile("|".join(map(self.translate, self.patterns))).match
        # The names of a model are few and come again in every pass.
        self._matches = dict.fromkeys(self.patterns, True)

    @staticmethod
    def translate(pattern: str) -> str:
        """A pattern as a regular expression."""
        return fnmatch.translate(pattern)

    def __contains__(self, name: str) -> bool:
        try:
            return self._matches[name]
        except KeyError:
            matches = self._matches[name] = self._match(name) is not None
            return matches

    def __eq__(self, other: object) -> bool:
        return self.patterns == other.patterns if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.patterns)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.patterns,))

    def __repr__(self) -> str:
        return ", ".join(map(repr, self.patterns))


class GlobAtom(Atom, frozen=True):
    """An atom that matches globs against one kind of name."""

    name: ClassVar[str]
    matched: ClassVar[Matched]
    globs: Globs

    def own_patterns(self) -> Iterator[Pattern]:
        for pattern in self.globs.patterns:
            yield self.matched, pattern, type(self.globs)((pattern,)).__contains__

    def __repr__(self) -> str:
        return f"{self.name}({self.globs!r})"


GlobsT = TypeVar("GlobsT", bound=Globs)


def globs_of(name: str, values: tuple[object, ...], example: str, globs: type[GlobsT]) -> GlobsT:
    """The arguments of a public function as globs, if they are strings."""
    if not values:
        raise PredicateError(f"{name}() needs at least one glob, such as {name}({example!r}); '*' matches all")
    for glob in values:
        if isinstance(glob, (list, tuple, set, frozenset)):
            arguments = ", ".join(map(repr, glob))
            raise PredicateError(f"{name}() takes its globs one by one: {name}({arguments})")
        if not isinstance(glob, str):
            raise PredicateError(
                f"{name}() takes strings such as {name}({example!r}), not {glob!r} ({type(glob).__name__})"
            )
    return globs(tuple(str(glob) for glob in values))


def count_of(name: str, n: object, what: str) -> int:
    """The argument of a public function as a count, if it is one."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise PredicateError(f"{name}() got {n!r}; give a whole number of {what}, 1 or more")
    return n
