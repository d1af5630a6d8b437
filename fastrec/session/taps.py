"""The callables that an engine feeds: one keeps every value of a place, one asks first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
import torch
from torch import Tensor

from fastrec._errors import OptionError, UnsupportedTensorError
from fastrec._torch.tensors import TensorGuard, check_copyable, never_matches, tensor_guard
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import PASS_FIELDS, RecordContext
from fastrec.events.position import Position
from fastrec.events.sites import PassInfo, RecordMeta, Site
from fastrec.predicates._base import PredicateBase
from fastrec.predicates._protocol import Decision, Predicate

if TYPE_CHECKING:
    from fastrec.session.session import Session


MAX_CELLS = 64
"""Shapes that a tap remembers at one place, before it looks them up anew."""

_interpreter = torch._C._functorch.peek_interpreter_stack

# Looking at a value is an op to every mode on the stack: this recorder's own around a module, or another's.
_modes = torch._C._len_torch_function_stack

_are_off = torch._C._is_torch_function_all_disabled

_no_modes = torch._C.DisableTorchFunction


def _no_tensor(value: Tensor) -> int:
    return -1


NO_COMPILED_GRADIENTS = (
    "save_gradient=True can't be kept by the compiled engine, whose values are extra outputs of the compiled code: the "
    "gradient that reaches the model's own value does not pass through them. Record the model that was compiled "
    "(model._orig_mod) with engine='eager'"
)

NOT_ASKED: Any = object()


class ResidualPredicate:
    """A rest, with whether its answer is the same for all events of a pass; one object for all places that ask it."""

    __slots__ = ("once_a_pass", "rest")

    def __init__(self, rest: Predicate) -> None:
        self.rest = rest
        self.once_a_pass = rest.reads <= PASS_FIELDS

    def ask(self, session: Session, ctx: RecordContext) -> CaptureSpec | None:
        """What it says of an event."""
        return session.ask(self.rest, ctx)


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
"""The variant, and where its values go."""


class KeepTap:
    """Keeps every value of one leaf of one place, in one way."""

    __slots__ = ("_cell", "_cells", "_place", "_session", "_site", "_spec")

    def __init__(self, session: Session, place: Position, site: Site, spec: CaptureSpec) -> None:
        self._session = session
        self._place = place
        self._site = site
        self._spec = spec
        self._cells: Cells[_Kept] = Cells()
        self._cell: tuple[TensorGuard, bool, _Kept] = (never_matches, False, (-1, _no_tensor))

    def __call__(self, run: PassRun, value: Tensor) -> None:
        if _modes() and not _are_off():
            with _no_modes():
                return self(run, value)
        # Read as one, because other threads turn to other cells.
        test, requires_grad, kept = self._cell
        try:
            if not test(value) or value.requires_grad is not requires_grad or run.parents is not None:
                if _interpreter() is not None:
                    return self._session.warn_transformed(self._site)
                kept = self._meet(run, value)
            variant, append = kept
            row = append(value)
        except Exception as error:
            error = _reason_for(error, value)
            run.fail(error)
            raise error
        run.rows.append(row)
        run.variants.append(variant)
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
        """The test for values like this one, whether they require a gradient, and their variant."""
        test, requires_grad, (variant, _) = self._cells.find(value, run.parents, partial(self._make, run, value))
        return test, requires_grad, variant

    def _meet(self, run: PassRun, value: Tensor) -> _Kept:
        """Turn to values that are unlike the last one."""
        self._cell = cell = self._cells.find(value, run.parents, partial(self._make, run, value))
        return cell[-1]

    def _make(self, run: PassRun, value: Tensor) -> _Kept:
        session = self._session
        spec = session.options.capture_of(self._spec, value.dtype)
        if spec.save_gradient and session.is_compiled:
            raise OptionError(NO_COMPILED_GRADIENTS)
        catalog = session.catalog
        variant = session.variants.make(self._place, self._site, value, catalog.specs.add(spec), run.parents)
        number = catalog.variants.add(variant)
        if spec.keep_grad:
            session.attached.add(number)
        if not spec.save_activation:
            return number, _no_tensor
        column = session.columns[number] = session.sink.column(number, value)
        # A transform may call a part of the model, which is no event then.
        return number, column.append if spec.transform is None else partial(session.unseen, column.append)


class AskTap:
    """Asks a rest about each value of one leaf of one place, and keeps what it says."""

    __slots__ = ("_cell", "_cells", "_halt", "_keeper", "_keepers", "_place", "_question", "_session", "_site")

    def __init__(
        self, session: Session, place: Position, site: Site, question: ResidualPredicate, halt: Predicate | None
    ) -> None:
        self._session = session
        self._place = place
        self._site = site
        self._question = question
        self._halt = halt
        self._keeper: tuple[CaptureSpec | None, KeepTap | None] = (None, None)
        self._keepers: dict[CaptureSpec, KeepTap] = {}
        self._cells: Cells[RecordMeta] = Cells()
        self._cell: tuple[TensorGuard, bool, RecordMeta | None] = (never_matches, False, None)

    def __call__(self, run: PassRun, value: Tensor) -> None:
        if _modes() and not _are_off():
            with _no_modes():
                return self(run, value)
        question = self._question
        try:
            spec = run.settled.get(question, NOT_ASKED)
            if spec is NOT_ASKED:
                spec = question.ask(self._session, self._context(run, value))
                if question.once_a_pass:
                    run.settled[question] = spec
            if spec is not None:
                known, keeper = self._keeper
                if spec is not known:
                    keeper = self._keepers.get(spec) or KeepTap(self._session, self._place, self._site, spec)
                    self._keepers[spec] = keeper
                    self._keeper = spec, keeper
                keeper(run, value)  # type: ignore[misc]
            if self._halt is not None:
                self._session.ask_halt(self._halt, self._context(run, value))
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
            session, info = self._session, run.info
            _, _, variant = self._cell
            if variant is None:  # any will do for what is the same for all events of a pass
                variant = session.variants.of(self._place, self._site, ((), "float32", "cpu", False), 0, None)
            ctx = RecordContext(session.catalog, self._site, variant, info, 0.0, info.step)
            run.settled[question] = question.ask(session, ctx)
        return run.settled[question] is not None

    @property
    def attached(self) -> bool:
        """Whether the values may have to carry gradients."""
        rest = self._question.rest
        return self._session.default.keep_grad or not (isinstance(rest, PredicateBase) and rest.is_plain)

    def _context(self, run: PassRun, value: Tensor) -> RecordContext:
        test, requires_grad, variant = self._cell
        if not test(value) or value.requires_grad is not requires_grad or run.parents is not None:
            variant = self._meet(run, value)
        info = run.info
        session = self._session
        return RecordContext(
            session.catalog,
            self._site,
            variant,  # type: ignore[arg-type]
            info,
            perf_counter() - info.started,
            info.step,
        )

    def _meet(self, run: PassRun, value: Tensor) -> RecordMeta:
        """Turn to values that are unlike the last one."""
        self._cell = cell = self._cells.find(value, run.parents, partial(self._make, run, value))
        return cell[-1]

    def _make(self, run: PassRun, value: Tensor) -> RecordMeta:
        return self._session.variants.make(self._place, self._site, value, 0, run.parents)


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


def spec_of(decision: Decision | None, default: CaptureSpec) -> CaptureSpec | None:
    """The spec that a decision stands for, None where the event is not kept."""
    if decision is True:
        return default
    if not decision and not isinstance(decision, Mapping | CaptureSpec):
        return None
    if isinstance(decision, CaptureSpec):
        spec = decision
    elif isinstance(decision, Mapping):
        spec = default.with_changes(dict(decision))
    else:
        return default
    return spec if spec.save_activation or spec.save_metadata else None


class PassRun(msgspec.Struct):
    """What a pass has kept so far, in event order; times on the clock of ``time.perf_counter``.

    ``rows`` is a list, or a HeldPass once all values of a pass that ends are held as they are.

    ``logged``: the recorder itself made the call, or it is a region, so it may return None. ``error`` is what a tap
    raised, and ``stop`` how many records there were before. ``settled`` holds what questions about the pass said.
    """

    info: PassInfo
    logged: bool
    variants: list[int]
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
