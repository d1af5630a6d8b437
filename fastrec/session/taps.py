"""Taps: what an engine calls with the values of one site.

    tap = make_tap(state, position, site, keep, halt)  # once per position and leaf
    tap(run, value)  # at each event

There are two. A ``KeepTap`` keeps every value and asks nobody. An ``AskTap`` has a residual predicate: it builds a
context, asks, and hands the value to a ``KeepTap`` for each spec that was answered. Engines and taps know nothing of
the session; what all taps share is a ``TapState``, and what they keep goes into the ``PassRun`` of the pass.

**The hot path** is ``KeepTap.__call__``, which costs as much as all the rest of an event. Two things make it short:

- *A guard in place of questions.* The meta of a record holds shape, dtype, device and more of the value, and its column
  expects values of one layout. Asking a value for each of these costs more than copying it. So the tap holds one guard
  of torch's, written in C++, that says in one call whether the value is like the last one, and beside it what was
  worked out for such values. ``GuardedCache`` has the same for other values that were seen at this position.
  ``Guards`` lets positions with values of one kind share a guard.
- *A pass is three lists.* A record appends its row, its meta and its time. What a pass kept becomes readable when the
  session commits these lists at its end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec
from torch import Tensor

from fastrec._errors import FastrecWarning, GradientError, OptionError, UnsupportedTensorError
from fastrec._torch.collectives import arrived, is_arriving
from fastrec._torch.internals import (
    are_function_modes_off,
    dispatch_mode_count,
    function_mode_count,
    functorch_level,
    no_function_modes,
)
from fastrec._torch.tensors import (
    TensorGuard,
    check_copyable,
    never_matches,
    run_outside_dispatch_modes,
    run_outside_saved_tensors_hooks,
    tensor_guard,
)
from fastrec.engines._protocol import Engine, PlannedTap
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import PASS_FIELDS, RecordContext
from fastrec.events.position import NO_TENSOR, Position, RecordMetaMaker, TensorFacts
from fastrec.events.sites import Catalog, PassInfo, RecordMeta, Site
from fastrec.predicates import NEVER
from fastrec.predicates._answers import halt_answer, spec_of
from fastrec.predicates._base import Constant, PredicateBase
from fastrec.predicates._protocol import Predicate
from fastrec.session.failures import Halt, PredicateFailures
from fastrec.session.options import GRADIENTS_NEED_RAM, NO_COMPILED_GRADIENTS, RecorderOptions
from fastrec.sinks._protocol import ColumnWriter, Sink

MAX_ENTRIES = 64
"""Kinds of values that a tap remembers at one position before it forgets them all."""

MAX_KINDS = 4096
"""Kinds of values whose guards a session remembers before it forgets them all."""


class PassRun(msgspec.Struct):
    """What a pass has kept so far, in event order; times on the clock of ``time.perf_counter``.

    ``rows`` is a list, until a pass that ends is kept uncopied as a whole: then an ``UncopiedPass`` takes its place.

    ``logged``: the recorder itself made the call, or it is a region, so it may return None. ``parents`` are the labels
    of the values that the current op read. ``error`` is what a tap raised, and ``stop`` how many records there were
    then. ``answers`` are those of residuals that are asked once per pass.
    """

    info: PassInfo
    logged: bool
    metas: list[int]
    rows: list[int]
    times: list[float]
    parents: tuple[str, ...] | None = None
    error: BaseException | None = None
    stop: int = 0
    answers: dict[ResidualPredicate, CaptureSpec | None] = msgspec.field(default_factory=dict)

    def fail(self, error: BaseException) -> None:
        """Remember what a tap raised, because the model's own code may swallow it, or go on after it."""
        if self.error is None:
            self.error, self.stop = error, len(self.rows)


class TapState:
    """What all taps of a session share: where values go, how they are copied, and what predicates answered.

    ``attached`` are the metas whose values carry gradients. ``unseen`` runs a function of which the engine sees
    nothing. Where ``is_compiled``, values are outputs of compiled code and not the model's own. Without
    ``keeps_gradients`` no sink has a place for them.
    """

    def __init__(
        self,
        options: RecorderOptions,
        catalog: Catalog,
        sink: Sink,
        engine: Engine[PassRun],
        halt: Predicate,
        *,
        observes_ops: bool,
    ) -> None:
        self.options = options
        self.default_spec = options.default_capture
        self.catalog = catalog
        self.sink = sink
        self.halt = halt
        self.meta_maker = RecordMetaMaker(catalog, options.history_size, observed=observes_ops)
        self.unseen = engine.unseen
        self.is_compiled = engine.is_compiled
        self.guards = Guards()
        self.keeps_gradients = True
        self.columns: dict[int, ColumnWriter] = {}
        self.attached: set[int] = set()
        self.failures = PredicateFailures(on_error=options.on_predicate_error)
        self._residuals: dict[Predicate, ResidualPredicate] = {}
        self._warnings: set[str] = set()

    def residual(self, predicate: Predicate) -> ResidualPredicate:
        """A predicate to be asked at each event; one about passes is the same object wherever it is asked."""
        if not predicate.reads <= PASS_FIELDS:
            return ResidualPredicate(predicate)
        return self._residuals.setdefault(predicate, ResidualPredicate(predicate))

    def ask(self, predicate: Predicate, ctx: RecordContext) -> CaptureSpec | None:
        """What a predicate says about an event, as a spec; errors of the user's function name the event."""
        try:
            return spec_of(predicate.decide(ctx), self.default_spec)
        # The predicate is the user's code, which may raise anything.
        except Exception as error:
            self.failures.handle(predicate, ctx, error)
            return None

    def ask_halt(self, predicate: Predicate, ctx: RecordContext) -> None:
        """Stop the pass if the halt predicate says so."""
        try:
            halts = halt_answer(predicate, ctx)
        # The predicate is the user's code, which may raise anything.
        except Exception as error:
            self.failures.handle(predicate, ctx, error)
            return
        if halts:
            raise Halt(f"{self.halt!r} matched {ctx.label!r} ({ctx.site})")

    def warn_transformed(self, site: Site) -> None:
        """Warn once per site that values inside functorch transforms are left out."""
        self.warn(
            f"functorch {site.name}",
            f"{site.name!r} ran inside of a functorch transform (vmap, grad, jvp); its values there are wrappers that "
            "must not escape, so they are not recorded",
        )

    def warn(self, key: str, message: str) -> None:
        """Warn once per key and session."""
        if key not in self._warnings:
            self._warnings.add(key)
            warnings.warn(message, FastrecWarning, stacklevel=2)


class ResidualPredicate:
    """What is left of a predicate after narrowing; ``is_once_per_pass`` if its answer is the same throughout a pass."""

    __slots__ = ("is_once_per_pass", "predicate")

    def __init__(self, predicate: Predicate) -> None:
        self.predicate = predicate
        self.is_once_per_pass = predicate.reads <= PASS_FIELDS


def make_tap(
    state: TapState, position: Position, site: Site, keep: Predicate, halt: Predicate
) -> PlannedTap[PassRun] | None:
    """The tap for a leaf of the value at a position, by what is left of the predicates; None: nothing is kept."""
    if halt == NEVER:
        if keep == NEVER:
            return None
        if isinstance(keep, Constant):
            spec = spec_of(keep.decision, state.default_spec)
            return None if spec is None else KeepTap(state, position, site, spec)
    return AskTap(state, position, site, state.residual(keep), None if halt == NEVER else halt)


T = TypeVar("T")

Entry: TypeAlias = tuple[TensorGuard, bool, T]
"""A guard for values that are alike, whether they require a gradient, and what was worked out for them."""


NO_ENTRY: Entry[Any] = (never_matches, False, None)
"""Where no value has been seen yet."""


class Guards:
    """The guards of all taps of a session: values of many positions are alike, and a guard takes long to make."""

    def __init__(self) -> None:
        self._guards: dict[Any, list[TensorGuard]] = {}

    def find(self, value: Tensor) -> TensorGuard:
        """A guard for values like this one."""
        # The key does not tell everything that a guard does (strides, lazy negation, class), but finds it quickly.
        key = (value.shape, value.dtype, value.device, value.requires_grad)
        for guard in self._guards.get(key, ()):
            if guard(value):
                return guard
        if len(self._guards) >= MAX_KINDS:
            self._guards = {}
        guard = tensor_guard(value)
        self._guards.setdefault(key, []).append(guard)
        return guard


class GuardedCache(Generic[T]):
    """What was worked out for each kind of value at one position, where there is more than one."""

    __slots__ = ("_count", "_entries")

    def __init__(self) -> None:
        self._entries: dict[Any, list[Entry[T]]] = {}
        self._count = 0

    def find(self, value: Tensor, parents: tuple[str, ...] | None, guards: Guards, make: Callable[[], T]) -> Entry[T]:
        """The entry for values like this one; what is new is made and remembered."""
        key = (value.shape, value.dtype, value.device, value.requires_grad, parents)
        for entry in self._entries.get(key, ()):
            if entry[0](value):
                return entry
        result = make()
        if self._count >= MAX_ENTRIES:
            self._entries, self._count = {}, 0
        self._count += 1
        entry = (guards.find(value), value.requires_grad, result)
        self._entries.setdefault(key, []).append(entry)
        return entry


class GuardedTap(Generic[T]):
    """A tap of one leaf at one position, with what it worked out for the kinds of values that it has seen.

    Most positions only ever see one kind of value, which stands in ``_last``; further kinds need a cache.
    """

    __slots__ = ("_cache", "_last", "_position", "_site", "_state")

    def __init__(self, state: TapState, position: Position, site: Site) -> None:
        self._state = state
        self._position = position
        self._site = site
        self._cache: GuardedCache[T] | None = None
        self._last: Entry[T] = NO_ENTRY

    def _find(self, run: PassRun, value: Tensor) -> T:
        guards = self._state.guards
        if self._last is NO_ENTRY and run.parents is None:
            result = self._make(run, value)
            self._last = guards.find(value), value.requires_grad, result
            return result
        if self._cache is None:
            self._cache = GuardedCache()
        self._last = entry = self._cache.find(value, run.parents, guards, partial(self._make, run, value))
        return entry[-1]

    def _make(self, run: PassRun, value: Tensor) -> T:
        """What is worked out for values like this one."""
        raise NotImplementedError


Keeper: TypeAlias = tuple[int, Callable[[Tensor], Any]]
"""The meta of a record, and the function that copies its value and returns the row."""


def _keep_no_tensor(value: Tensor) -> int:
    return -1


class KeepTap(GuardedTap[Keeper]):
    """Keeps every value of one leaf at one position, copied as one spec says."""

    __slots__ = ("_spec",)

    def __init__(self, state: TapState, position: Position, site: Site, spec: CaptureSpec) -> None:
        super().__init__(state, position, site)
        self._spec = spec

    def __call__(self, run: PassRun, value: Tensor) -> None:
        # Looking at a value is an op to every mode on the stack: this recorder's own around a module, or another's.
        if function_mode_count() and not are_function_modes_off():
            with no_function_modes():
                return self(run, value)
        # Read as one tuple, because another thread may replace it.
        guard, requires_grad, keeper = self._last
        try:
            # Where gradients are off the guard ignores requires_grad, which a record tells. A meta holds parents too.
            if not guard(value) or value.requires_grad is not requires_grad or run.parents is not None:
                if functorch_level() is not None:
                    return self._state.warn_transformed(self._site)
                keeper = self._find(run, value)
            meta, append = keeper
            row = append(value)
        except Exception as error:
            error = _reason_for(error, value)
            run.fail(error)
            raise error
        run.rows.append(row)
        run.metas.append(meta)
        run.times.append(perf_counter())
        return None

    @property
    def attached(self) -> bool:
        """Whether the values may have to carry gradients."""
        return self._spec.keep_grad

    @property
    def site(self) -> Site:
        """The site of the leaf that it keeps."""
        return self._site

    @property
    def is_plain(self) -> bool:
        """Whether values are kept as they are."""
        return self._spec.is_plain

    def _make(self, run: PassRun, value: Tensor) -> Keeper:
        state = self._state
        spec = state.options.capture_of(self._spec, value.dtype)
        if spec.save_gradient and state.is_compiled:
            raise OptionError(NO_COMPILED_GRADIENTS)
        if (spec.keep_grad or spec.save_gradient) and not state.keeps_gradients:
            raise GradientError(GRADIENTS_NEED_RAM)
        catalog = state.catalog
        facts, spec_number = TensorFacts.of(value), catalog.specs.add(spec)
        number = catalog.metas.add(state.meta_maker.make(self._position, self._site, facts, spec_number, run.parents))
        if spec.keep_grad:
            state.attached.add(number)
        if not spec.save_activation:
            return number, _keep_no_tensor
        is_late = is_arriving(value)
        if is_late and (spec.keep_grad or spec.save_gradient):
            raise UnsupportedTensorError(
                "the value of a collective that is still under way (AsyncCollectiveTensor) can't be kept with its "
                "gradient; leave keep_grad and save_gradient out, or record after an op that uses it"
            )
        column = run_outside_dispatch_modes(partial(state.sink.column, number), arrived(value))
        if is_late and spec.transform is None:  # a transform gets the value as the model does, and may wait itself
            column = ArrivingColumn(column)
        state.columns[number] = column
        append: Callable[[Tensor], int] = column.append
        if spec.transform is not None:
            # It may call a part of the model, which is not an event then, and save tensors for its backward pass.
            append = partial(state.unseen, append)
            if spec.keep_grad:
                append = partial(run_outside_saved_tensors_hooks, append)
        # The guard fails where there are dispatch modes and were none, or the other way round.
        return number, partial(run_outside_dispatch_modes, append) if dispatch_mode_count() else append


class ArrivingColumn:
    """Keeps the values of collectives, each when it has arrived."""

    __slots__ = ("_column", "discard")

    def __init__(self, column: ColumnWriter) -> None:
        self._column = column
        self.discard = column.discard

    def append(self, value: Tensor) -> int:
        """Wait for a value, and keep it."""
        return self._column.append(arrived(value))


def _reason_for(error: Exception, value: Tensor) -> Exception:
    """Why a value can't be kept, where the kind of tensor is the reason; else the error itself."""
    try:
        check_copyable(arrived(value))
    except UnsupportedTensorError as reason:
        return reason
    return error


NOT_ASKED: Any = object()


class AskTap(GuardedTap[RecordMeta]):
    """Asks a residual about each value of one leaf at one position, and keeps what it answers; may halt the pass."""

    __slots__ = ("_halt", "_keep_tap", "_keep_taps", "_residual")

    def __init__(
        self, state: TapState, position: Position, site: Site, residual: ResidualPredicate, halt: Predicate | None
    ) -> None:
        super().__init__(state, position, site)
        self._residual = residual
        self._halt = halt
        self._keep_tap: tuple[CaptureSpec | None, KeepTap | None] = (None, None)
        self._keep_taps: dict[CaptureSpec, KeepTap] = {}

    def __call__(self, run: PassRun, value: Tensor) -> None:
        if function_mode_count() and not are_function_modes_off():
            with no_function_modes():
                return self(run, value)
        residual = self._residual
        try:
            spec = run.answers.get(residual, NOT_ASKED)
            if spec is NOT_ASKED:
                spec = self._state.ask(residual.predicate, self._context(run, value))
                if residual.is_once_per_pass:
                    run.answers[residual] = spec
            if spec is not None:
                last_spec, keep_tap = self._keep_tap
                if spec is not last_spec:
                    keep_tap = self._keep_taps.get(spec) or KeepTap(self._state, self._position, self._site, spec)
                    self._keep_taps[spec] = keep_tap
                    self._keep_tap = spec, keep_tap
                keep_tap(run, value)  # type: ignore[misc]
            if self._halt is not None:
                self._state.ask_halt(self._halt, self._context(run, value))
        except BaseException as error:
            run.fail(error)
            raise
        return None

    @property
    def attached(self) -> bool:
        """Whether the values may have to carry gradients."""
        predicate = self._residual.predicate
        return self._state.default_spec.keep_grad or not (isinstance(predicate, PredicateBase) and predicate.is_plain)

    @property
    def pass_residual(self) -> ResidualPredicate | None:
        """The residual, if one answer to it settles a whole pass for this tap; None if it asks about each event."""
        return self._residual if self._residual.is_once_per_pass and self._halt is None else None

    def keeps_in(self, run: PassRun) -> bool:
        """Whether ``pass_residual`` says that values are kept in a pass that begins."""
        residual = self._residual
        if residual not in run.answers:
            state, info = self._state, run.info
            _, _, meta = self._last
            if meta is None:  # any meta will do for a predicate that only reads what is the same throughout a pass
                meta = state.meta_maker.make(self._position, self._site, NO_TENSOR, 0, None)
            ctx = RecordContext(state.catalog, self._site, meta, info, 0.0, info.step)
            run.answers[residual] = state.ask(residual.predicate, ctx)
        return run.answers[residual] is not None

    def _context(self, run: PassRun, value: Tensor) -> RecordContext:
        guard, requires_grad, meta = self._last
        if not guard(value) or value.requires_grad is not requires_grad or run.parents is not None:
            meta = self._find(run, value)
        info = run.info
        state = self._state
        return RecordContext(
            state.catalog,
            self._site,
            meta,
            info,
            perf_counter() - info.started,
            info.step,
        )

    def _make(self, run: PassRun, value: Tensor) -> RecordMeta:
        return self._state.meta_maker.make(self._position, self._site, TensorFacts.of(value), 0, run.parents)


def skips_pass(taps: Sequence[object]) -> Callable[[PassRun], bool] | None:
    """A test of a pass that begins, whether these taps keep nothing in it; None where some tap asks at each event."""
    tap_of_residual: dict[ResidualPredicate, AskTap] = {}
    for tap in taps:
        if not isinstance(tap, AskTap) or tap.pass_residual is None:
            return None
        tap_of_residual.setdefault(tap.pass_residual, tap)
    ask_taps = list(tap_of_residual.values())

    def skips(run: PassRun) -> bool:
        return not any(tap.keeps_in(run) for tap in ask_taps)

    return skips
