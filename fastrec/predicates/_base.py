"""The algebra of predicates: what each of them can do, how they join, and how they are narrowed.

    >>> from fastrec.predicates import every, op
    >>> predicate = op("relu").with_(keep_grad=True) & every(10)
    >>> predicate.narrow(Site("1/relu", "op", "relu", "relu", ()))
    every(10).with_(keep_grad=True)
    >>> predicate.narrow(Site("0/linear", "op", "linear", "linear", ()))
    NEVER

``decide(ctx)`` answers for one event. ``narrow(site)`` answers once per site, with the *residual*: the smallest
predicate that still has to be asked at the events there. What the site settles is gone from it. So nothing is installed
where the residual is NEVER, and nothing is asked where it is a Constant.

Narrowing must not change an answer, and an answer also says how to keep: ``a & b`` merges the captures of its parts
from left to right, ``a | b`` takes that of the first part that keeps. So the parts of ``&`` are only merged or moved
where they are *plain*, which means that they say yes or no and never how. Narrowing a residual again changes nothing.
"""

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
    def captures(self) -> Iterator[Changes | CaptureSpec]:
        """How it says that values are kept, as far as it says so without being asked."""

    @abstractmethod
    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        """The residual, given what the view shows."""

    @property
    def history(self) -> int:
        """How many recent events it looks back at."""
        return max((leaf.looks_back for leaf in self.leaves()), default=0)

    def patterns(self, *matched: Matched) -> Iterator[Pattern]:
        """Its globs of some names, by default op types and module addresses, to compare with what a session saw."""
        wanted = matched or ("op", "module")
        return (pattern for leaf in self.leaves() for pattern in leaf.own_patterns() if pattern[0] in wanted)

    def narrow(self, site: Site) -> PredicateBase:
        """The residual at a site: NEVER, ALWAYS, another Constant, or as small a question as possible."""
        return self._settle(SiteView(site))

    def may_keep_kind(self, kind: Kind) -> bool:
        """Whether by its structure it could ever keep an event of this kind."""
        return self._settle(KindView(kind)) is not NEVER

    def with_(self, **changes: Any) -> PredicateBase:
        """The same predicate, but what it keeps is kept with some fields of the default capture changed.

        >>> import torch
        >>> from fastrec.predicates import op
        >>> op("relu").with_(dtype=torch.bfloat16, device="cpu")
        op('relu').with_(dtype=torch.bfloat16, device='cpu')

        Arguments:
            changes: fields of CaptureSpec. Those of an outer ``with_`` win over those inside.

        Raises OptionError for an unknown field, or for fields that don't fit together.
        """
        return _attach(self, Changes(changes))

    def __call__(self, ctx: Context) -> bool | CaptureSpec:
        answer = self.decide(ctx)
        return CaptureSpec(**answer) if isinstance(answer, Changes) else answer

    def __and__(self, other: PredicateBase | Callable[[Any], Any]) -> PredicateBase:
        return And(tuple(_flat(And, (self, as_operand(other, "&")))))

    def __rand__(self, other: Callable[[Any], Any]) -> PredicateBase:
        return And(tuple(_flat(And, (as_operand(other, "&"), self))))

    def __or__(self, other: PredicateBase | Callable[[Any], Any]) -> PredicateBase:
        return Or(tuple(_flat(Or, (self, as_operand(other, "|")))))

    def __ror__(self, other: Callable[[Any], Any]) -> PredicateBase:
        return Or(tuple(_flat(Or, (as_operand(other, "|"), self))))

    def __invert__(self) -> PredicateBase:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise PredicateError(
            f"{self!r} has no truth value of its own: join predicates with & | ~ instead of and, or, not, "
            "and ask one by calling it with a context"
        )


# --- Leaves: predicates that are not joined from others ---------------------------------------------------------------


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

    def captures(self) -> Iterator[Changes | CaptureSpec]:
        return iter(())


class Constant(Leaf, frozen=True):
    """A settled predicate, whose ``decision`` is the same for every event."""

    decision: Answer
    reads = frozenset[str]()

    @property
    def is_plain(self) -> bool:
        return isinstance(self.decision, bool)

    def decide(self, ctx: Context) -> Answer:
        return self.decision

    def captures(self) -> Iterator[Changes | CaptureSpec]:
        if not isinstance(self.decision, bool):
            yield self.decision

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (constant, (self.decision,))

    def __repr__(self) -> str:
        if isinstance(self.decision, Changes):
            return f"ALWAYS.with_({self.decision!r})"
        if isinstance(self.decision, CaptureSpec):
            return f"Constant({self.decision!r})"
        return "ALWAYS" if self.decision else "NEVER"


NEVER = Constant(False)
ALWAYS = Constant(True)


def constant(decision: Answer) -> Constant:
    """The constant of a decision; there is one NEVER and one ALWAYS, also after pickling."""
    if isinstance(decision, bool):
        return ALWAYS if decision else NEVER
    return Constant(decision)


class Opaque(Leaf, frozen=True):
    """Any function of the context. Nothing is known about it, so it is asked at every event."""

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


def as_operand(value: object, sign: str) -> PredicateBase:
    """What stands beside a sign as a predicate."""
    if isinstance(value, PredicateBase):
        return value
    return Opaque(check_callable(value, f"a predicate's {sign}"))


# --- Predicates that are joined from others ---------------------------------------------------------------------------


class Compound(PredicateBase, frozen=True):
    """A predicate made of others."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset[str]().union(*(leaf.reads for leaf in self.leaves()))


class Chain(Compound, frozen=True):
    """Two or more parts with one sign between them, none of which is a chain of the same sign."""

    parts: tuple[PredicateBase, ...]

    @property
    def is_plain(self) -> bool:
        return all(part.is_plain for part in self.parts)

    def leaves(self) -> Iterator[Leaf]:
        for part in self.parts:
            yield from part.leaves()

    def captures(self) -> Iterator[Changes | CaptureSpec]:
        for part in self.parts:
            yield from part.captures()


class And(Chain, frozen=True):
    """Keeps what all parts keep. Where they differ about how, the right one wins."""

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
        residuals: list[PredicateBase] = []
        for part in self.parts:
            residual = part._settle(view)
            if residual is NEVER:
                return NEVER
            if residual is not ALWAYS:
                residuals.append(residual)
        return _all_of(residuals)

    def __repr__(self) -> str:
        return " & ".join(_parenthesised(part, Or) for part in self.parts)


class Or(Chain, frozen=True):
    """Keeps what any part keeps. The first that keeps says how."""

    def decide(self, ctx: Context) -> Answer:
        for part in self.parts:
            answer = part.decide(ctx)
            if answer is not False:
                return answer
        return False

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        residuals: list[PredicateBase] = []
        for part in self.parts:
            residual = part._settle(view)
            if residual is not NEVER:
                residuals.append(residual)
            if isinstance(residual, Constant) and residual is not NEVER:
                break  # before the parts behind it are narrowed, which may ask functions of the user
        return _any_of(residuals)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))


class Not(Compound, frozen=True):
    """Keeps what its part doesn't, with the default capture."""

    part: PredicateBase
    is_plain = True

    def decide(self, ctx: Context) -> Answer:
        return self.part.decide(ctx) is False

    def leaves(self) -> Iterator[Leaf]:
        return self.part.leaves()

    def captures(self) -> Iterator[Changes | CaptureSpec]:
        return iter(())  # what it keeps, its part does not

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        residual = self.part._settle(view)
        if isinstance(residual, Constant):
            return ALWAYS if residual is NEVER else NEVER
        question = residual.part if isinstance(residual, With) else residual
        if isinstance(question, Not) and question.part.is_plain:
            return question.part
        return Not(question)

    def __repr__(self) -> str:
        return f"~{_parenthesised(self.part, And, Or)}"


class With(Compound, frozen=True):
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

    def captures(self) -> Iterator[Changes | CaptureSpec]:
        yield self.changes
        # Fields that are changed here are not as the part says.
        for capture in self.part.captures():
            decision = merge(capture, self.changes)
            assert not isinstance(decision, bool)
            yield decision

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        return _attach(self.part._settle(view), self.changes)

    def __repr__(self) -> str:
        return f"{_parenthesised(self.part, And, Or, Not)}.with_({self.changes!r})"


# --- Making residuals as small as they can be -------------------------------------------------------------------------


def _all_of(residuals: list[PredicateBase]) -> PredicateBase:
    """One predicate that keeps what all residuals keep, none of which is NEVER or ALWAYS."""
    if len(residuals) <= 1:
        return residuals[0] if residuals else ALWAYS
    parts = _flat(And, residuals)
    questions = [part for part in parts if not isinstance(part, Constant)]
    plain = [question.part if isinstance(question, With) else question for question in questions]
    if not all(question.is_plain for question in plain):
        # What a function says about how to keep is merged in its turn, so every part keeps its place.
        return And(tuple(parts))
    capture: Answer = True
    for part in parts:
        capture = merge(capture, _capture_of(part))
    if not plain:
        return constant(capture)
    questions = _once(_flat(And, plain))
    if capture is not True and not isinstance(capture, Changes):
        return And((*questions, constant(capture)))
    question = questions[0] if len(questions) == 1 else And(tuple(questions))
    return question if capture is True else With(question, capture)


def _any_of(residuals: list[PredicateBase]) -> PredicateBase:
    """One predicate that keeps what any residual keeps, none of which is NEVER."""
    if len(residuals) <= 1:
        return residuals[0] if residuals else NEVER
    # A question that comes a second time has said no before, so even one that says how is asked once.
    parts = _once(_flat(Or, residuals))
    for number, part in enumerate(parts, 1):
        if isinstance(part, Constant):  # what comes after a part that always keeps is never asked
            del parts[number:]
            break
    if parts[-1] is ALWAYS and all(part.is_plain for part in parts):
        return ALWAYS
    return parts[0] if len(parts) == 1 else Or(tuple(parts))


def _capture_of(residual: PredicateBase) -> Answer:
    """How a residual keeps what it keeps, if its question is a plain one."""
    if isinstance(residual, Constant):
        return residual.decision
    return residual.changes if isinstance(residual, With) else True


def _attach(predicate: PredicateBase, changes: Changes) -> PredicateBase:
    if not changes or predicate is NEVER:
        return predicate
    if isinstance(predicate, Constant):
        return constant(merge(predicate.decision, changes))
    if isinstance(predicate, With):
        return With(predicate.part, Changes({**predicate.changes, **changes}))
    return With(predicate, changes)


def _flat(sign: type[Chain], parts: Iterable[PredicateBase]) -> list[PredicateBase]:
    """The parts, those of chains with this sign one by one."""
    flat: list[PredicateBase] = []
    for part in parts:
        if isinstance(part, sign):
            flat += part.parts
        else:
            flat.append(part)
    return flat


def _once(parts: list[PredicateBase]) -> list[PredicateBase]:
    """The parts without those that came before."""
    once: list[PredicateBase] = []
    for part in parts:
        if part not in once:
            once.append(part)
    return once


def _parenthesised(part: PredicateBase, *looser: type[PredicateBase]) -> str:
    """A part as text, in parentheses if its sign binds less tightly than the one around it."""
    return f"({part!r})" if isinstance(part, looser) else repr(part)
