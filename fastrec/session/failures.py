"""What becomes of predicates that raise."""

from __future__ import annotations

import warnings
from typing import Literal, NoReturn

from fastrec._errors import FastrecWarning, PredicateError
from fastrec.events.context import PredicateFailure as PredicateFailure
from fastrec.events.context import RecordContext
from fastrec.events.sites import Site
from fastrec.predicates._protocol import Context, Decision, Predicate

MAX_COLLECTED = 100


class Failing:
    """What is left of a predicate that raised when it was settled for a place: it raises there at each event."""

    reads = frozenset({"site"})  # it tells at each event

    def __init__(self, predicate: Predicate, error: Exception) -> None:
        self._predicate = predicate
        self._error = error

    def narrow(self, site: Site) -> Failing:
        """It stays as it is."""
        return self

    def decide(self, ctx: Context) -> Decision:
        """Raise what the predicate raised."""
        raise self._error

    def __repr__(self) -> str:
        return repr(self._predicate)


class PredicateFailures:
    """Raises the first failure, or collects a bounded list of them and warns at the end."""

    def __init__(self, *, on_error: Literal["raise", "collect"]) -> None:
        self._raises = on_error == "raise"
        self.collected: list[PredicateFailure] = []
        self.total = 0

    def handle(self, predicate: Predicate, ctx: RecordContext, error: Exception) -> None:
        """A predicate raised at an event."""
        if self._raises:
            told = str(error) if isinstance(error, PredicateError) else f"{type(error).__name__}: {error}"
            raise PredicateError(
                f"the predicate {predicate!r} failed at {ctx.label!r} ({ctx.kind} at {ctx.site!r}, pass "
                f"{ctx.pass_index}): {told}. Mend it, or open the recorder with on_predicate_error='collect'"
            ) from error
        self.total += 1
        if len(self.collected) < MAX_COLLECTED:
            self.collected.append(PredicateFailure(repr(predicate), ctx, f"{type(error).__name__}: {error}"))

    def warn(self) -> None:
        """Say at the end of a session that events were skipped."""
        if self.total:
            first = self.collected[0]
            warnings.warn(
                f"predicates failed at {self.total} events, which were skipped; the first: {first.error} at "
                f"{first.context.label!r} ({first.context.site}). recording.predicate_failures has them",
                FastrecWarning,
                stacklevel=3,
            )


class Halt(BaseException):
    """Unwinds a pass; no Exception, so that no ``except Exception`` of the model swallows it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def halt(reason: str = "halted by a predicate") -> NoReturn:
    """Stop the pass at the event that a predicate is asked about; what was kept before stays.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
    >>> def until_relu(ctx):
    ...     return fastrec.halt("saw a relu") if ctx.layer_type == "relu" else True
    >>> recording = fastrec.record(model, torch.zeros(1, 4), keep_op=until_relu)
    >>> [record.ctx.label for record in recording], recording.halted
    (['linear_1'], {0: 'saw a relu'})

    Arguments:
        reason: told by ``recording.halted``.
    """
    raise Halt(reason)
