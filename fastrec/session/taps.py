"""The callables that an engine feeds: one keeps every value of a place, one asks first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Generic, TypeVar

import msgspec
from torch import Tensor

from fastrec._errors import FastrecWarning, OptionError, UnsupportedTensorError
from fastrec._torch.internals import are_function_modes_off, function_mode_count, functorch_level, no_function_modes
from fastrec._torch.tensors import TensorGuard, check_copyable, never_matches, tensor_guard
from fastrec.engines._protocol import Engine
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import PASS_FIELDS, RecordContext
from fastrec.events.position import Position, RecordMetaMaker
from fastrec.events.sites import Catalog, PassInfo, RecordMeta, Site
from fastrec.predicates._answers import spec_of
from fastrec.predicates._base import PredicateBase
from fastrec.predicates._protocol import Predicate
from fastrec.session.failures import Halt, PredicateFailures
from fastrec.session.options import RecorderOptions
from fastrec.sinks._protocol import ColumnWriter, Sink

MAX_CELLS = 64
"""Shapes that a tap remembers at one place, before it looks them up anew."""

# Looking at a value is an op to every mode on the stack: this recorder's own around a module, or another's.


def _no_tensor(value: Tensor) -> int:
    return -1


NO_COMPILED_GRADIENTS = (
    "save_gradient=True can't be kept by the compiled engine, whose values are extra outputs of the compiled code: the "
    "gradient that reaches the model's own value does not pass through them. Record the model that was compiled "
    "(model._orig_mod) with engine='eager'"
)

NOT_ASKED: Any = object()


class TapState:
    """What all taps of a session share: where values go, how they are copied, and what predicates answered.

    ``meta_maker`` makes the facts that records share, ``attached`` are those of them whose values carry gradients.
    ``unseen`` runs a function of which the engine sees nothing. Where ``is_compiled``, values are outputs of compiled
    code, not the model's own.
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
        self.default = options.default_capture
        self.catalog = catalog
        self.sink = sink
        self.halt = halt
        self.meta_maker = RecordMetaMaker(catalog, options.history_size, observed=observes_ops)
        self.unseen = engine.unseen
        self.is_compiled = engine.is_compiled
        self.columns: dict[int, ColumnWriter] = {}
        self.attached: set[int] = set()
        self.failures = PredicateFailures(on_error=options.on_predicate_error)
        self._warned: set[str] = set()

    def ask(self, predicate: Predicate, ctx: RecordContext) -> CaptureSpec | None:
        """What a predicate says about an event, as a spec; errors of the user's function name the event."""
        try:
            return spec_of(predicate.decide(ctx), self.default)
        # The predicate is the user's code, which may raise anything.
        except Exception as error:
            self.failures.handle(predicate, ctx, error)
            return None

    def ask_halt(self, predicate: Predicate, ctx: RecordContext) -> None:
        """Stop the pass if the halt predicate says so."""
        if self.ask(predicate, ctx) is not None:
            raise Halt(f"{self.halt!r} matched {ctx.label!r} ({ctx.site})")

    def warn_transformed(self, site: Site) -> None:
        """Say once that values inside of functorch transforms are left out."""
        self.warn(
            f"functorch {site.name}",
            f"{site.name!r} ran inside of a functorch transform (vmap, grad, jvp); its values there are wrappers that "
            "must not escape, so they are not recorded",
        )

    def warn(self, key: str, message: str) -> None:
        """Warn once per key and session."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, FastrecWarning, stacklevel=2)


class ResidualPredicate:
    """A rest, with whether its answer is the same for all events of a pass; one object for all places that ask it."""

    __slots__ = ("once_a_pass", "rest")

    def __init__(self, rest: Predicate) -> None:
        self.rest = rest
        self.once_a_pass = rest.reads <= PASS_FIELDS

    def ask(self, state: TapState, ctx: RecordContext) -> CaptureSpec | None:
        """What it says of an event."""
        return state.ask(self.rest, ctx)


Made = TypeVar("Made")


class Cells(Generic[Made]):
    """What was worked out once for the values of a place that are alike."""

    __slots__ = ("_cells", "_count")

    def __init__(self) -> None:
        self._cells: dict[Any, list[tuple[TensorGuard, Made]]] = {}
        self._count = 0

    def find(self, value: Tensor, parents: Any, make: Callable[[], Made]) -> tuple[TensorGuard, bool, Made]:
        """The test for values like this one, whether they require a gradient, and what was made for them."""
        requires_grad = value.requires_grad
        key = (value.shape, value.dtype, value.device, requires_grad, parents)
        for test, made in self._cells.get(key, ()):
            if test(value):
                return test, requires_grad, made
        made = make()
        if self._count >= MAX_CELLS:
            self._cells, self._count = {}, 0
        self._count += 1
        test = tensor_guard(value)
        self._cells.setdefault(key, []).append((test, made))
        return test, requires_grad, made


_Kept = tuple[int, Callable[[Tensor], Any]]
"""The meta, and where its values go."""


class KeepTap:
    """Keeps every value of one leaf of one place, in one way."""

    __slots__ = ("_cell", "_cells", "_place", "_state", "_site", "_spec")

    def __init__(self, state: TapState, place: Position, site: Site, spec: CaptureSpec) -> None:
        self._state = state
        self._place = place
        self._site = site
        self._spec = spec
        self._cells: Cells[_Kept] = Cells()
        self._cell: tuple[TensorGuard, bool, _Kept] = (never_matches, False, (-1, _no_tensor))

    def __call__(self, run: PassRun, value: Tensor) -> None:
        if function_mode_count() and not are_function_modes_off():
            with no_function_modes():
                return self(run, value)
        # Read as one, because other threads turn to other cells.
        test, requires_grad, kept = self._cell
        try:
            if not test(value) or value.requires_grad is not requires_grad or run.parents is not None:
                if functorch_level() is not None:
                    return self._state.warn_transformed(self._site)
                kept = self._meet(run, value)
            meta, append = kept
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
        """The leaf of a place that it keeps."""
        return self._site

    @property
    def is_plain(self) -> bool:
        """Whether values are kept as they are."""
        return self._spec.is_plain

    def kept_as(self, run: PassRun, value: Tensor) -> tuple[TensorGuard, bool, int]:
        """The test for values like this one, whether they require a gradient, and their meta."""
        test, requires_grad, (meta, _) = self._cells.find(value, run.parents, partial(self._make, run, value))
        return test, requires_grad, meta

    def _meet(self, run: PassRun, value: Tensor) -> _Kept:
        """Turn to values that are unlike the last one."""
        self._cell = cell = self._cells.find(value, run.parents, partial(self._make, run, value))
        return cell[-1]

    def _make(self, run: PassRun, value: Tensor) -> _Kept:
        state = self._state
        spec = state.options.capture_of(self._spec, value.dtype)
        if spec.save_gradient and state.is_compiled:
            raise OptionError(NO_COMPILED_GRADIENTS)
        catalog = state.catalog
        meta = state.meta_maker.make(self._place, self._site, value, catalog.specs.add(spec), run.parents)
        number = catalog.metas.add(meta)
        if spec.keep_grad:
            state.attached.add(number)
        if not spec.save_activation:
            return number, _no_tensor
        column = state.columns[number] = state.sink.column(number, value)
        # A transform may call a part of the model, which is no event then.
        return number, column.append if spec.transform is None else partial(state.unseen, column.append)


class AskTap:
    """Asks a rest about each value of one leaf of one place, and keeps what it says."""

    __slots__ = ("_cell", "_cells", "_halt", "_keeper", "_keepers", "_place", "_question", "_state", "_site")

    def __init__(
        self, state: TapState, place: Position, site: Site, question: ResidualPredicate, halt: Predicate | None
    ) -> None:
        self._state = state
        self._place = place
        self._site = site
        self._question = question
        self._halt = halt
        self._keeper: tuple[CaptureSpec | None, KeepTap | None] = (None, None)
        self._keepers: dict[CaptureSpec, KeepTap] = {}
        self._cells: Cells[RecordMeta] = Cells()
        self._cell: tuple[TensorGuard, bool, RecordMeta | None] = (never_matches, False, None)

    def __call__(self, run: PassRun, value: Tensor) -> None:
        if function_mode_count() and not are_function_modes_off():
            with no_function_modes():
                return self(run, value)
        question = self._question
        try:
            spec = run.settled.get(question, NOT_ASKED)
            if spec is NOT_ASKED:
                spec = question.ask(self._state, self._context(run, value))
                if question.once_a_pass:
                    run.settled[question] = spec
            if spec is not None:
                known, keeper = self._keeper
                if spec is not known:
                    keeper = self._keepers.get(spec) or KeepTap(self._state, self._place, self._site, spec)
                    self._keepers[spec] = keeper
                    self._keeper = spec, keeper
                keeper(run, value)  # type: ignore[misc]
            if self._halt is not None:
                self._state.ask_halt(self._halt, self._context(run, value))
        except BaseException as error:
            run.fail(error)
            raise
        return None

    @property
    def pass_question(self) -> ResidualPredicate | None:
        """The question that settles a pass for this tap; None where it may stop the pass, or asks about each event."""
        return self._question if self._question.once_a_pass and self._halt is None else None

    def keeps_in(self, run: PassRun) -> bool:
        """What the answer to ``pass_question`` is, for a pass that begins."""
        question = self._question
        if question not in run.settled:
            state, info = self._state, run.info
            _, _, meta = self._cell
            if meta is None:  # any will do for what is the same for all events of a pass
                meta = state.meta_maker.of(self._place, self._site, ((), "float32", "cpu", False), 0, None)
            ctx = RecordContext(state.catalog, self._site, meta, info, 0.0, info.step)
            run.settled[question] = question.ask(state, ctx)
        return run.settled[question] is not None

    @property
    def attached(self) -> bool:
        """Whether the values may have to carry gradients."""
        rest = self._question.rest
        return self._state.default.keep_grad or not (isinstance(rest, PredicateBase) and rest.is_plain)

    def _context(self, run: PassRun, value: Tensor) -> RecordContext:
        test, requires_grad, meta = self._cell
        if not test(value) or value.requires_grad is not requires_grad or run.parents is not None:
            meta = self._meet(run, value)
        info = run.info
        state = self._state
        return RecordContext(
            state.catalog,
            self._site,
            meta,  # type: ignore[arg-type]
            info,
            perf_counter() - info.started,
            info.step,
        )

    def _meet(self, run: PassRun, value: Tensor) -> RecordMeta:
        """Turn to values that are unlike the last one."""
        self._cell = cell = self._cells.find(value, run.parents, partial(self._make, run, value))
        return cell[-1]

    def _make(self, run: PassRun, value: Tensor) -> RecordMeta:
        return self._state.meta_maker.make(self._place, self._site, value, 0, run.parents)


def skips_pass(taps: Sequence[Any]) -> Callable[[PassRun], bool] | None:
    """Whether none of some taps keeps anything in a pass that begins; None where that can't be told of all passes."""
    asked: dict[ResidualPredicate, AskTap] = {}
    for tap in taps:
        question = tap.pass_question if isinstance(tap, AskTap) else None
        if question is None:
            return None
        asked.setdefault(question, tap)
    askers = list(asked.values())

    def is_idle(run: PassRun) -> bool:
        return not any(tap.keeps_in(run) for tap in askers)

    return is_idle


def _reason_for(error: Exception, value: Tensor) -> Exception:
    """Why a value can't be kept, where the kind of tensor is the reason; else the error itself."""
    try:
        check_copyable(value)
    except UnsupportedTensorError as reason:
        return reason
    return error


class PassRun(msgspec.Struct):
    """What a pass has kept so far, in event order; times on the clock of ``time.perf_counter``.

    ``rows`` is a list, or a HeldPass once all values of a pass that ends are held as they are.

    ``logged``: the recorder itself made the call, or it is a region, so it may return None. ``error`` is what a tap
    raised, and ``stop`` how many records there were before. ``settled`` holds what questions about the pass said.
    """

    info: PassInfo
    logged: bool
    metas: list[int]
    rows: Any
    times: list[float]
    parents: tuple[str, ...] | None = None
    error: BaseException | None = None
    stop: int = 0
    settled: dict[Any, Any] = msgspec.field(default_factory=dict)

    def fail(self, error: BaseException) -> None:
        """Remember what a tap raised, for the model's own code may swallow it, or go on after it."""
        if self.error is None:
            self.error, self.stop = error, len(self.rows)
