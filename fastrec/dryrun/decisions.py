"""What predicates say about the events of a dry run, and how many bytes that would take.

decider = Decider(options, roots)
outcome = decider.outcome(event, value)  # in the order of the events
decider.forecast(event, outcome)  # bytes of this event in a thousand passes
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import msgspec
import torch
from torch import Tensor

from fastrec.dryrun.events import SOURCE_KINDS, Event
from fastrec.events.capture import CaptureSpec, kept_dtype
from fastrec.events.context import PASS_FIELDS, TENSOR_FIELDS, PredicateFailure, RecordContext, torch_dtype
from fastrec.events.sites import PassInfo
from fastrec.predicates import NEVER
from fastrec.predicates._answers import halt_answer, spec_of
from fastrec.predicates._base import Opaque, PredicateBase
from fastrec.session.failures import Halt
from fastrec.session.options import RecorderOptions
from fastrec.session.plan import Plan
from fastrec.sinks._copying import parts_of

FORECAST_PASSES = 1000

Verdict = Literal["kept", "rejected", "unreachable", "failed"]
"""Kept; asked about and not kept; never asked about, whatever the predicates say; asked about, and that fails."""

Decision = CaptureSpec | PredicateFailure | None
"""How an event is kept; or why that can't be said or done; or None, if it is not kept."""

AnswerT = TypeVar("AnswerT")

_PASS_NUMBERS = frozenset({"entry_pass", "pass_index"})


class Outcome(NamedTuple):
    """What becomes of one event: the decision, the bytes that are kept, and whether the predicates are asked."""

    decision: Decision
    nbytes: int
    is_asked: bool = True

    @property
    def verdict(self) -> Verdict:
        """The decision in a word."""
        if isinstance(self.decision, PredicateFailure):
            return "failed"
        if self.decision is not None:
            return "kept"
        return "rejected" if self.is_asked else "unreachable"


_NOT_ASKED = Outcome(None, 0, is_asked=False)


class Decider:
    """Asks the predicates of a recorder about events, in the order in which these happened."""

    def __init__(self, options: RecorderOptions, roots: Mapping[str, Any]) -> None:
        self.options = options
        self.roots = WeakValueDictionary(roots)  # a dry run keeps no tensor, and so no model
        self.plan = Plan(options, roots)
        self._default = options.default_capture
        self.halted: dict[int, str] = {}
        self._counts: dict[Hashable, Mapping[CaptureSpec, int]] = {}
        self._infos: dict[int, list[PassInfo]] = {}

    def outcome(self, event: Event, value: Tensor | None = None) -> Outcome:
        """What becomes of an event; without its value, a transform is measured on zeros of the same shape."""
        if event.info.index in self.halted or not self._is_observed(event):
            return _NOT_ASKED
        outcome = self._outcome_of_keep(event, value)
        halt = self.plan.halt_at(event.site.kind)
        if halt != NEVER and event.info.index not in self.halted:
            halts = self._ask(halt, event, halt_answer)
            if isinstance(halts, PredicateFailure):
                return Outcome(halts, 0)
            if halts:
                self.halted[event.info.index] = f"{halt!r} matched {event.meta.label!r} ({event.site.name})"
        return outcome

    def forecast(self, event: Event, outcome: Outcome) -> int:
        """The bytes that ``FORECAST_PASSES`` passes like this one keep of an event, all together.

        Only predicates that count passes, such as ``every(10)``, are asked again. A function is taken to answer as it
        did in this pass.
        """
        if not self._is_observed(event) or event.info.index in self.halted:
            return FORECAST_PASSES * outcome.nbytes
        try:
            residual = self._predicate(event).narrow(event.site)
            has_functions = any(isinstance(leaf, Opaque) for leaf in residual.leaves())
            if has_functions or not residual.reads & _PASS_NUMBERS:
                return FORECAST_PASSES * outcome.nbytes
            counts = self._pass_counts(residual, event)
            return sum(count * self._measure(spec, event, None).nbytes for spec, count in counts.items())
        # A predicate may hold the user's code, which may raise anything; the outcome of the event says so.
        except Exception:
            return FORECAST_PASSES * outcome.nbytes

    def _is_observed(self, event: Event) -> bool:
        return self.options.include_source_events or event.site.kind not in SOURCE_KINDS

    def _predicate(self, event: Event) -> PredicateBase:
        return self.plan.predicate(event.site.kind)

    def _outcome_of_keep(self, event: Event, value: Tensor | None) -> Outcome:
        decision = self._ask(
            self._predicate(event), event, lambda predicate, ctx: spec_of(predicate.decide(ctx), self._default)
        )
        if not isinstance(decision, CaptureSpec):
            return Outcome(decision, 0)
        return self._measure(decision, event, value)

    def _ask(
        self, predicate: PredicateBase, event: Event, answer: Callable[[PredicateBase, RecordContext], AnswerT]
    ) -> AnswerT | PredicateFailure | None:
        try:
            return answer(predicate, event.ctx_in(event.info))
        except Halt as halt:
            self.halted[event.info.index] = halt.reason
            return None
        # The predicate is the user's code, which may raise anything.
        except Exception as error:
            return PredicateFailure(repr(predicate), event.ctx, f"{type(error).__name__}: {error}")

    def _measure(self, spec: CaptureSpec, event: Event, value: Tensor | None) -> Outcome:
        """The bytes that a spec makes of an event, or why the value can't be kept like that."""
        spec = self.options.capture_of(spec, torch_dtype(event.meta.dtype))
        if not spec.save_activation:
            return Outcome(spec, 0)
        obstacles = event.obstacles
        reason = (
            obstacles.copy
            or (obstacles.keep_grad if spec.keep_grad else None)
            or (obstacles.save_gradient if spec.save_gradient else None)
        )
        if reason is None:
            try:
                return Outcome(spec, _bytes(spec, event, value))
            # A transform is the user's code, which may raise anything.
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
        return Outcome(PredicateFailure(repr(self._predicate(event)), event.ctx, reason), 0)

    def _pass_counts(self, residual: PredicateBase, event: Event) -> Mapping[CaptureSpec, int]:
        """In how many of ``FORECAST_PASSES`` passes a residual keeps an event, by spec."""
        if not residual.reads <= PASS_FIELDS | TENSOR_FIELDS:
            return self._count_passes(residual, event)
        # Events that look alike to it share the answer, so that a thousand passes are asked about once for all of them.
        meta = event.meta
        key = (residual, event.info.index, meta.shape, meta.dtype, meta.device, meta.requires_grad)
        if key not in self._counts:
            self._counts[key] = self._count_passes(residual, event)
        return self._counts[key]

    def _count_passes(self, residual: PredicateBase, event: Event) -> Mapping[CaptureSpec, int]:
        answers = (residual.decide(event.ctx_in(info)) for info in self._passes_like(event.info))
        specs = (spec_of(answer, self._default) for answer in answers)
        return Counter(spec for spec in specs if spec is not None)

    def _passes_like(self, info: PassInfo) -> list[PassInfo]:
        if info.index not in self._infos:
            self._infos[info.index] = [
                msgspec.structs.replace(info, index=number, entry_pass=number) for number in range(FORECAST_PASSES)
            ]
        return self._infos[info.index]


def _bytes(spec: CaptureSpec, event: Event, value: Tensor | None) -> int:
    dtype, shape = torch_dtype(event.meta.dtype), event.meta.shape
    nbytes = kept_dtype(spec, dtype).itemsize * math.prod(shape)
    if spec.transform is None:
        return nbytes
    if value is None:
        value = torch.zeros(shape, dtype=dtype, device=event.meta.device)
    only_transform = spec.with_changes({"keep_grad": False, "save_gradient": False, "save_raw": False})
    result = parts_of(value, only_transform)["transformed_activation"]
    transformed_nbytes = kept_dtype(spec, result.dtype).itemsize * result.numel()
    return transformed_nbytes + (nbytes if spec.save_raw else 0)
