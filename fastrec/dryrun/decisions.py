"""What predicates say about the events of a dry run, and what keeping these would take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from fastrec.dryrun.events import SOURCES, Event
from fastrec.events.capture import CaptureSpec, kept_dtype
from fastrec.events.context import TENSOR_FIELDS, torch_dtype
from fastrec.events.sites import PassInfo
from fastrec.predicates import NEVER
from fastrec.predicates._answers import spec_of
from fastrec.predicates._base import Opaque, PredicateBase
from fastrec.session.failures import Halt, PredicateFailure
from fastrec.session.options import RecorderOptions
from fastrec.session.plan import Plan
from fastrec.sinks._copying import parts_of

FORECAST_PASSES = 1000

Verdict = Literal["kept", "rejected", "unreachable", "failed"]
"""Kept; asked about and not kept; never asked about, whatever the predicates say; asked about, and that fails."""

Decision = CaptureSpec | PredicateFailure | None
"""How an event is kept, why that can't be told or done, or None: it is not kept."""

_NUMBER_OF_PASS = frozenset({"entry_pass", "pass_index"})

_OF_PASS_AND_VALUE = _NUMBER_OF_PASS | TENSOR_FIELDS | {"phase", "entry", "grad_enabled", "sample_id", "step"}


class Outcome(NamedTuple):
    """What becomes of one event: its decision, the bytes that are kept, and whether anybody is asked about it."""

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

    def __init__(self, options: RecorderOptions) -> None:
        self.options = options
        self._plan = Plan(options)
        self._default = options.default_capture
        self.halted: dict[int, str] = {}
        self._counts: dict[Hashable, Mapping[CaptureSpec, int]] = {}
        self._infos: dict[int, list[PassInfo]] = {}

    def outcome(self, event: Event, value: Tensor | None = None) -> Outcome:
        """What becomes of an event; without its value, a transform is measured on zeros of the same shape."""
        if event.info.index in self.halted or not self._is_asked(event):
            return _NOT_ASKED
        outcome = self._kept(event, value)
        halt = self._plan.halt_at(event.site.kind)
        if halt != NEVER and event.info.index not in self.halted:
            stops = self._ask(halt, event)
            if isinstance(stops, PredicateFailure):
                return Outcome(stops, 0)
            if stops is not None:
                self.halted[event.info.index] = f"{halt!r} matched {event.meta.label!r} ({event.site.name})"
        return outcome

    def forecast(self, event: Event, outcome: Outcome) -> int:
        """The bytes that passes like this one keep of an event, all FORECAST_PASSES of them together.

        Only predicates that count passes are asked again, such as ``every(10)``: a function is taken to answer as
        it did in this pass.
        """
        if not self._is_asked(event) or event.info.index in self.halted:
            return FORECAST_PASSES * outcome.nbytes
        try:
            rest = self._predicate(event).narrow(event.site)
            counts_passes = rest.reads & _NUMBER_OF_PASS and not any(isinstance(p, Opaque) for p in rest.leaves())
            if not counts_passes:
                return FORECAST_PASSES * outcome.nbytes
            specs = self._specs(rest, event)
            return sum(number * self._measured(spec, event, None).nbytes for spec, number in specs.items())
        # A predicate may hold the user's code, which may raise anything; its event says so.
        except Exception:
            return FORECAST_PASSES * outcome.nbytes

    def _is_asked(self, event: Event) -> bool:
        return self.options.include_source_events or event.site.kind not in SOURCES

    def _predicate(self, event: Event) -> PredicateBase:
        return self._plan.predicate(event.site.kind)

    def _kept(self, event: Event, value: Tensor | None) -> Outcome:
        decision = self._ask(self._predicate(event), event)
        if not isinstance(decision, CaptureSpec):
            return Outcome(decision, 0)
        return self._measured(decision, event, value)

    def _ask(self, predicate: PredicateBase, event: Event) -> Decision:
        try:
            return spec_of(predicate.decide(event.asked(event.info)), self._default)
        except Halt as halt:
            self.halted[event.info.index] = halt.reason
            return None
        # The predicate is the user's code, which may raise anything.
        except Exception as error:
            return PredicateFailure(repr(predicate), event.ctx, f"{type(error).__name__}: {error}")

    def _measured(self, spec: CaptureSpec, event: Event, value: Tensor | None) -> Outcome:
        """What a spec makes of an event: its bytes, or why the value can't be kept like that."""
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

    def _specs(self, rest: PredicateBase, event: Event) -> Mapping[CaptureSpec, int]:
        """In how many passes a rest keeps an event, by how."""
        if not rest.reads <= _OF_PASS_AND_VALUE:
            return self._count(rest, event)
        meta = event.meta
        key = (rest, event.info.index, meta.shape, meta.dtype, meta.device, meta.requires_grad)
        if key not in self._counts:
            self._counts[key] = self._count(rest, event)
        return self._counts[key]

    def _count(self, rest: PredicateBase, event: Event) -> Mapping[CaptureSpec, int]:
        infos = self._passes_like(event.info)
        answers = (rest.decide(event.asked(info)) for info in infos)
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
    transformed = kept_dtype(spec, result.dtype).itemsize * result.numel()
    return transformed + (nbytes if spec.save_raw else 0)
