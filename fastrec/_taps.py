"""The callables that an engine feeds: one keeps every value of a place, one asks first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastrec._capture import CaptureSpec
from fastrec._context import PASS_FIELDS, RecordContext
from fastrec._contracts import Decision, Place, Predicate
from fastrec._errors import UnsupportedTensorError
from fastrec._recording_limits import check_copyable
from fastrec._run import PassRun
from fastrec._sites import Site, Variant

if TYPE_CHECKING:
    from fastrec._session import Session

MOST_CELLS = 64
"""Shapes that a tap remembers at one place, before it looks them up anew."""

_interpreter = torch._C._functorch.peek_interpreter_stack


def _no_tensor(value: Tensor) -> int:
    return -1


# Looking at a value is an op to every mode on the stack: this recorder's own around a module, or another's.
_modes = torch._C._len_torch_function_stack
_are_off = torch._C._is_torch_function_all_disabled
_no_modes = torch._C.DisableTorchFunction


NOT_ASKED: Any = object()


class Question:
    """A rest, with whether its answer is the same for all events of a pass; one object for all places that ask it."""

    __slots__ = ("once_a_pass", "rest")

    def __init__(self, rest: Predicate) -> None:
        self.rest = rest
        self.once_a_pass = rest.reads <= PASS_FIELDS

    def ask(self, session: Session, ctx: RecordContext) -> CaptureSpec | None:
        """What it says of an event."""
        return session.ask(self.rest, ctx)


Cell = tuple[Any, Any, Any, Any, bool, int, Callable[[Tensor], Any]]
"""Shape, dtype, whether it requires a gradient, device, whether that is the CPU; the variant and where values go."""
_NO_CELL: Cell = (None, None, None, None, False, -1, _no_tensor)


class KeepTap:
    """Keeps every value of one leaf of one place, in one way."""

    __slots__ = ("_cell", "_cells", "_place", "_session", "_site", "_spec")

    def __init__(self, session: Session, place: Place, site: Site, spec: CaptureSpec) -> None:
        self._session = session
        self._place = place
        self._site = site
        self._spec = spec
        self._cells: dict[Any, Cell] = {}
        self._cell = _NO_CELL

    def __call__(self, run: PassRun, value: Tensor) -> None:
        if _modes() and not _are_off():
            with _no_modes():
                return self(run, value)
        # Read as one, because other threads turn to other cells.
        shape, dtype, requires_grad, device, on_cpu, variant, append = self._cell
        try:
            if (
                value.shape != shape
                or value.dtype is not dtype
                or value.requires_grad is not requires_grad
                or not (value.is_cpu if on_cpu else value.device == device)
                or run.parents is not None
            ):
                cell = self._meet(run, value)
                if cell is None:
                    return None
                variant, append = cell[-2:]
            row = append(value)
        except Exception as error:
            if isinstance(error, RuntimeError) and _interpreter() is not None:
                self._session.warn_transformed(self._site)
                return None
            error = _told(error, value)
            run.fail(error)
            raise error
        run.rows.append(row)
        run.variants.append(variant)
        run.times.append(perf_counter())
        return None

    def _meet(self, run: PassRun, value: Tensor) -> Cell | None:
        """Turn to values of another shape, dtype or device than the last one's; None: can't be kept."""
        session = self._session
        key = (value.shape, value.dtype, value.device, value.requires_grad, run.parents)
        cell = self._cells.get(key)
        if cell is None:
            if _interpreter() is not None:
                session.warn_transformed(self._site)
                return None
            if len(self._cells) >= MOST_CELLS:
                self._cells.clear()
            spec = session.options.capture_of(self._spec, value.dtype)
            catalog = session.catalog
            variant = session.variants.make(self._place, self._site, value, catalog.specs.add(spec), run.parents)
            number = catalog.variants.add(variant)
            append = _no_tensor
            if spec.save_activation:
                column = session.columns[number] = session.sink.column(number, value)
                # A transform may call a part of the model, which is no event then.
                append = column.append if spec.transform is None else partial(session.unseen, column.append)
            if spec.keep_grad:
                session.attached.add(number)
            # Whether it is on the CPU is a quicker question than what its device is.
            on_cpu = value.is_cpu
            cell = (value.shape, value.dtype, value.requires_grad, value.device, on_cpu, number, append)
            self._cells[key] = cell
        self._cell = cell
        return cell


class AskTap:
    """Asks a rest about each value of one leaf of one place, and keeps what it says."""

    __slots__ = ("_cell", "_halt", "_keeper", "_keepers", "_place", "_question", "_session", "_site", "_variants")

    def __init__(
        self, session: Session, place: Place, site: Site, question: Question, halt: Predicate | None
    ) -> None:
        self._session = session
        self._place = place
        self._site = site
        self._question = question
        self._halt = halt
        self._keeper: tuple[CaptureSpec | None, KeepTap | None] = (None, None)
        self._keepers: dict[CaptureSpec, KeepTap] = {}
        self._cell: tuple[Any, Any, Any, Any, Variant | None] = (None, None, None, None, None)
        self._variants: dict[Any, Variant] = {}

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
    def pass_question(self) -> Question | None:
        """The question that settles a pass for this tap; None where it may stop the pass, or asks about each event."""
        return self._question if self._question.once_a_pass and self._halt is None else None

    def keeps_in(self, run: PassRun) -> bool:
        """What the answer to ``pass_question`` is, for a pass that begins."""
        question = self._question
        if question not in run.settled:
            session, info = self._session, run.info
            variant = session.variants.of(self._place, self._site, ((), "float32", "cpu", False), 0, None)
            ctx = RecordContext(session.catalog, self._site, variant, info, 0.0, info.step)
            run.settled[question] = question.ask(session, ctx)
        return run.settled[question] is not None

    def _context(self, run: PassRun, value: Tensor) -> RecordContext:
        shape, dtype, requires_grad, device, variant = self._cell
        if (
            value.shape != shape
            or value.dtype is not dtype
            or value.requires_grad is not requires_grad
            or value.device != device
            or run.parents is not None
        ):
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

    def _meet(self, run: PassRun, value: Tensor) -> Variant:
        key = (value.shape, value.dtype, value.requires_grad, value.device, run.parents)
        variant = self._variants.get(key)
        if variant is None:
            if len(self._variants) >= MOST_CELLS:
                self._variants.clear()
            variant = self._session.variants.make(self._place, self._site, value, 0, run.parents)
            self._variants[key] = variant
        self._cell = (*key[:4], variant)
        return variant


def idle_question(taps: Sequence[Any]) -> Callable[[PassRun], bool] | None:
    """Whether none of some taps keeps anything in a pass that begins; None where that can't be told of all passes."""
    asked: dict[Question, AskTap] = {}
    for tap in taps:
        question = tap.pass_question if isinstance(tap, AskTap) else None
        if question is None:
            return None
        asked.setdefault(question, tap)
    askers = list(asked.values())

    def is_idle(run: PassRun) -> bool:
        return not any(tap.keeps_in(run) for tap in askers)

    return is_idle


def _told(error: Exception, value: Tensor) -> Exception:
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
