"""The base of all predicates, and how they join."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NoReturn

import msgspec

from fastrec._errors import PredicateError
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import FIELDS
from fastrec.events.sites import Kind, Site
from fastrec.predicates._answers import Answer, Changes, check_callable, checked, function_text, merge
from fastrec.predicates._partial_context import KindView, SiteView
from fastrec.predicates._protocol import Context

NOTHING: frozenset[str] = frozenset()
ALL_FIELDS = frozenset(FIELDS)

Matched = Literal["op", "module", "module_type", "phase", "entry"]
"""What globs are matched against: op types, module addresses, class names, phases, entries."""

Pattern = tuple[Matched, str, Callable[[str], bool]]
"""What a glob is matched against, the glob, and whether it matches a name."""


class PredicateBase(msgspec.Struct, frozen=True):
    """A question about one event, that can be joined with others and settled once per site.

    >>> from fastrec.predicates import every, op
    >>> (op("relu") & every(10)) | ~op("relu", "conv*")
    op('relu') & every(10) | ~op('relu', 'conv*')

    Calling a predicate with a context answers False, True (keep with the default capture) or a CaptureSpec.
    """

    @property
    @abstractmethod
    def reads(self) -> frozenset[str]:
        """The context fields that it may look at."""

    @property
    @abstractmethod
    def is_plain(self) -> bool:
        """Whether it only says keep or not, never how."""

    @abstractmethod
    def decide(self, ctx: Context) -> Answer:
        """False, True, the changes to the default capture, or a whole capture."""

    @abstractmethod
    def leaves(self) -> Iterator[Leaf]:
        """The predicates that it is joined from."""

    @abstractmethod
    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        """What is left to ask, given what the view knows."""

    @property
    def history(self) -> int:
        """How many recent events it looks back at."""
        return max((leaf.looks_back for leaf in self.leaves()), default=0)

    def patterns(self, *matched: Matched) -> Iterator[Pattern]:
        """Its globs of some names, by default op types and module addresses, to compare with what a session saw."""
        wanted = matched or ("op", "module")
        return (found for leaf in self.leaves() for found in leaf.own_patterns() if found[0] in wanted)

    def narrow(self, site: Site) -> PredicateBase:
        """What is left to ask at a site: NEVER, ALWAYS, another Constant, or a rest as small as possible."""
        return self._settle(SiteView(site))

    def may_keep_kind(self, kind: Kind) -> bool:
        """Whether by its structure it could ever keep an event of this kind."""
        return self._settle(KindView(kind)) is not NEVER

    def with_(self, **changes: Any) -> PredicateBase:
        """The same predicate, that keeps with some fields of the default capture changed.

        >>> import torch
        >>> from fastrec.predicates import op
        >>> op("relu").with_(dtype=torch.bfloat16, device="cpu")
        op('relu').with_(dtype=torch.bfloat16, device='cpu')

        Arguments:
            changes: fields of CaptureSpec. Those of an outer ``with_`` win over those inside.

        Raises OptionError for an unknown field, or fields that do not fit together.
        """
        return _attach(self, Changes(changes))

    def __call__(self, ctx: Context) -> bool | CaptureSpec:
        answer = self.decide(ctx)
        return CaptureSpec(**answer) if isinstance(answer, Changes) else answer

    def __and__(self, other: PredicateBase | Callable[[Any], Any]) -> PredicateBase:
        return And(_flat(And, (self, as_operand(other, "&"))))

    def __rand__(self, other: Callable[[Any], Any]) -> PredicateBase:
        return And(_flat(And, (as_operand(other, "&"), self)))

    def __or__(self, other: PredicateBase | Callable[[Any], Any]) -> PredicateBase:
        return Or(_flat(Or, (self, as_operand(other, "|"))))

    def __ror__(self, other: Callable[[Any], Any]) -> PredicateBase:
        return Or(_flat(Or, (as_operand(other, "|"), self)))

    def __invert__(self) -> PredicateBase:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise PredicateError(
            f"{self!r} has no truth value of its own: join predicates with & | ~ instead of and, or, not, "
            "and ask one by calling it with a context"
        )


class Leaf(PredicateBase, frozen=True):
    """A predicate that is not joined from others."""

    @property
    def looks_back(self) -> int:
        """How many recent events it looks back at."""
        return 0

    def own_patterns(self) -> Iterable[Pattern]:
        """Its globs."""
        return ()

    def leaves(self) -> Iterator[Leaf]:
        yield self


class Joined(PredicateBase, frozen=True):
    """A predicate made of others."""

    @property
    def reads(self) -> frozenset[str]:
        return NOTHING.union(*(leaf.reads for leaf in self.leaves()))


class Constant(Leaf, frozen=True):
    """A settled predicate: its ``decision`` is the same for every event."""

    decision: Answer
    reads = NOTHING

    @property
    def is_plain(self) -> bool:
        return isinstance(self.decision, bool)

    def decide(self, ctx: Context) -> Answer:
        return self.decision

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (settled, (self.decision,))

    def __repr__(self) -> str:
        if isinstance(self.decision, Changes):
            return f"ALWAYS.with_({self.decision!r})"
        if isinstance(self.decision, CaptureSpec):
            return f"Constant({self.decision!r})"
        return "ALWAYS" if self.decision else "NEVER"


NEVER = Constant(False)
ALWAYS = Constant(True)


def settled(decision: Answer) -> Constant:
    """The constant of a decision; there is one NEVER and one ALWAYS."""
    if isinstance(decision, bool):
        return ALWAYS if decision else NEVER
    return Constant(decision)


class Opaque(Leaf, frozen=True):
    """Any function of the context: nothing is known of it, so it is asked at every event."""

    function: Callable[[Any], Any]
    reads = ALL_FIELDS
    is_plain = False

    def decide(self, ctx: Context) -> Answer:
        answer = self.function(ctx)
        return answer if answer is True or answer is False else checked(answer, self, ctx)

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        return self

    def __repr__(self) -> str:
        return function_text(self.function)


class Several(Joined, frozen=True):
    """Parts side by side."""

    parts: tuple[PredicateBase, ...]

    @property
    def is_plain(self) -> bool:
        return all(part.is_plain for part in self.parts)

    def leaves(self) -> Iterator[Leaf]:
        for part in self.parts:
            yield from part.leaves()


class And(Several, frozen=True):
    """Keeps what all parts keep; of what they say about how, the right one wins."""

    def decide(self, ctx: Context) -> Answer:
        decision: Answer = True
        for part in self.parts:
            answer = part.decide(ctx)
            if answer is False:
                return False
            if answer is not True:
                decision = merge(decision, answer)
        return decision

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        rests: list[PredicateBase] = []
        for part in self.parts:
            rest = part._settle(view)
            if rest is NEVER:
                return NEVER
            rests.append(rest)
        return _all_of(rests)

    def __repr__(self) -> str:
        return " & ".join(_within(part, Or) for part in self.parts)


class Or(Several, frozen=True):
    """Keeps what any part keeps; the first that keeps says how."""

    def decide(self, ctx: Context) -> Answer:
        for part in self.parts:
            answer = part.decide(ctx)
            if answer is not False:
                return answer
        return False

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        rests: list[PredicateBase] = []
        for part in self.parts:
            rest = part._settle(view)
            if rest is not NEVER:
                rests.append(rest)
            if isinstance(rest, Constant) and rest is not NEVER:
                break  # what comes after a part that always keeps is never asked
        return _any_of(rests)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))


class Not(Joined, frozen=True):
    """Keeps what its part doesn't."""

    part: PredicateBase
    is_plain = True

    def decide(self, ctx: Context) -> Answer:
        return self.part.decide(ctx) is False

    def leaves(self) -> Iterator[Leaf]:
        return self.part.leaves()

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        rest = self.part._settle(view)
        if isinstance(rest, Constant):
            return ALWAYS if rest is NEVER else NEVER
        if isinstance(rest, Not) and rest.part.is_plain:
            return rest.part
        return Not(rest.part if isinstance(rest, With) else rest)

    def __repr__(self) -> str:
        return f"~{_within(self.part, And, Or)}"


class With(Joined, frozen=True):
    """Keeps what its part keeps, with some fields of the capture changed."""

    part: PredicateBase
    changes: Changes
    is_plain = False

    def decide(self, ctx: Context) -> Answer:
        answer = self.part.decide(ctx)
        if answer is True:
            return self.changes
        return answer if answer is False else merge(answer, self.changes)

    def leaves(self) -> Iterator[Leaf]:
        return self.part.leaves()

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        return _attach(self.part._settle(view), self.changes)

    def __repr__(self) -> str:
        return f"{_within(self.part, And, Or, Not)}.with_({self.changes!r})"


def as_operand(value: object, sign: str) -> PredicateBase:
    """What stands beside a sign as a predicate."""
    if isinstance(value, PredicateBase):
        return value
    return Opaque(check_callable(value, f"a predicate's {sign}"))


def _attach(predicate: PredicateBase, changes: Changes) -> PredicateBase:
    if not changes or predicate is NEVER:
        return predicate
    if isinstance(predicate, Constant):
        return settled(merge(predicate.decision, changes))
    if isinstance(predicate, With):
        return With(predicate.part, Changes({**predicate.changes, **changes}))
    return With(predicate, changes)


def _all_of(rests: list[PredicateBase]) -> PredicateBase:
    """The rests that all have to keep as one, with what is known about how taken out of the questions."""
    open_ = [rest for rest in rests if not isinstance(rest, Constant)]
    asked = [rest.part if isinstance(rest, With) else rest for rest in open_]
    if not all(rest.is_plain for rest in asked):
        return _joined(And, [rest for rest in rests if rest is not ALWAYS])
    how = _merged(map(_how, rests))
    if not asked:
        return settled(how)
    rest = _joined(And, _once(asked))
    if isinstance(how, Changes):
        return With(rest, how)
    return rest if how is True else _joined(And, [rest, settled(how)])


def _merged(hows: Iterable[Answer]) -> Answer:
    merged: Answer = True
    for how in hows:
        merged = merge(merged, how)
    return merged


def _any_of(rests: list[PredicateBase]) -> PredicateBase:
    if not rests:
        return NEVER
    if rests[-1] is ALWAYS and all(rest.is_plain for rest in rests):
        return ALWAYS
    return _joined(Or, _once(rests))


def _how(rest: PredicateBase) -> Answer:
    if isinstance(rest, Constant):
        return rest.decision
    return rest.changes if isinstance(rest, With) else True


def _once(rests: Iterable[PredicateBase]) -> list[PredicateBase]:
    """The rests without those that were asked before."""
    kept: list[PredicateBase] = []
    for rest in rests:
        if rest not in kept:
            kept.append(rest)
    return kept


def _joined(sign: type[And] | type[Or], rests: list[PredicateBase]) -> PredicateBase:
    return rests[0] if len(rests) == 1 else sign(_flat(sign, rests))


def _flat(sign: type[And] | type[Or], parts: Iterable[PredicateBase]) -> tuple[PredicateBase, ...]:
    flat: list[PredicateBase] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, sign) else (part,))
    return tuple(flat)


def _within(part: PredicateBase, *looser: type[PredicateBase]) -> str:
    return f"({part!r})" if isinstance(part, looser) else repr(part)
