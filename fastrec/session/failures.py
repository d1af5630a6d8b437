"""Predicates that raise, and predicates that halt a pass."""

from __future__ import annotations

import warnings
from typing import Literal, NoReturn

from fastrec._errors import FastrecWarning, PredicateError
from fastrec.events.context import PredicateFailure, RecordContext
from fastrec.predicates._protocol import Predicate

MAX_COLLECTED = 100


class PredicateFailures:
    """Raises the first failure, or collects a bounded list of them and warns at the end."""

    def __init__(self, *, on_error: Literal["raise", "collect"]) -> None:
        self._raises = on_error == "raise"
        self.collected: list[PredicateFailure] = []
        self.total = 0

    def handle(self, predicate: Predicate, ctx: RecordContext, error: Exception) -> None:
        """A predicate raised at an event."""
        if self._raises:
            reason = str(error) if isinstance(error, PredicateError) else f"{type(error).__name__}: {error}"
            raise PredicateError(
                f"the predicate {predicate!r} failed at {ctx.label!r} ({ctx.kind} at {ctx.site!r}, pass "
                f"{ctx.pass_index}): {reason}. Fix it, or open the recorder with on_predicate_error='collect'"
            ) from error
        self.total += 1
        if len(self.collected) < MAX_COLLECTED:
            self.collected.append(PredicateFailure(repr(predicate), ctx, f"{type(error).__name__}: {error}"))

    def warn(self) -> None:
        """Warn at the end of a session that events were skipped."""
        if self.total:
            first = self.collected[0]
            warnings.warn(
                f"predicates failed at {self.total} events, which were skipped; the first: {first.error} at "
                f"{first.context.label!r} ({first.context.site}). recording.predicate_failures has them",
                FastrecWarning,
                stacklevel=3,
            )


class Halt(BaseException):
    """Ends a pass by unwinding it. It is no Exception, so that no ``except Exception`` of the model swallows it."""

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
        reason: shown by ``recording.halted``.
    """
    raise Halt(reason)
