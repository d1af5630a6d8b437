"""An open session: numbers the passes, asks the predicates, hands what is kept to the sink."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from time import perf_counter
from typing import Any

import numpy.typing as npt
import torch

from fastrec._errors import FastrecWarning, OptionError, SessionError
from fastrec._torch.process import FORKS
from fastrec.engines._protocol import PlannedTap
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import RecordContext
from fastrec.events.position import Position, RecordMetaMaker
from fastrec.events.sites import Catalog, PassInfo, Site
from fastrec.predicates._protocol import Predicate
from fastrec.session.failures import Halt, PredicateFailures
from fastrec.session.options import RecorderOptions
from fastrec.session.plan import Plan
from fastrec.session.taps import PassRun, spec_of
from fastrec.sinks import RAMSink
from fastrec.sinks._protocol import ColumnWriter, PassLog, Sink

_grad_is_on = torch.is_grad_enabled


class _Call(threading.local):
    """What the recorder's own call in this thread said about the pass that is about to begin."""

    logged = False
    sample_id: str | int | None = None


def _directly(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


class Session:
    """What engines and taps talk to while a recorder is open."""

    def __init__(self, options: RecorderOptions, plan: Plan, sink: Sink, catalog: Catalog, ram: RAMSink | None) -> None:
        self.options = options
        self.plan = plan
        self.sink = sink
        self._ram = ram
        self.catalog = catalog
        self.failures = PredicateFailures(on_error=options.on_predicate_error)
        catalog.failures = self.failures.collected
        self.ledger: PassLog = sink.open(catalog)
        self._commit = self.ledger.commit
        self.variants = RecordMetaMaker(catalog, options.history_size, observed=plan.watches_ops)
        self.default = options.default_capture
        self.unseen: Callable[..., Any] = _directly  # runs a function of which the engine sees nothing
        self._forks = FORKS.count
        self.call = _Call()
        self.own_calls = 0  # of the recorder itself that are under way in any thread; without, `call` need not be read
        self.columns: dict[int, ColumnWriter] = {}
        self.is_compiled = False  # values are outputs of compiled code, not the model's own
        self.attached: set[int] = set()
        self.passes_attached = 0
        self.seen_layer_types: set[str] = set()
        self.phase = catalog.phases.add("")
        self.phase_of: Callable[[str], str] | None = None
        self.paused = 0
        self._marks: dict[int, int] = {}
        self._retains_passes = options.retain is not None and ram is not None
        self._next_pass = count().__next__
        self._entries: dict[str, tuple[int, Any]] = {}
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    @contextmanager
    def own_call(self, sample_id: str | int | None = None) -> Iterator[None]:
        """The next pass of this thread is one that the recorder itself asked for."""
        with self._lock:
            self.own_calls += 1
        self.call.logged, self.call.sample_id = True, sample_id
        try:
            yield
        finally:
            self.call.logged, self.call.sample_id = False, None
            with self._lock:
                self.own_calls -= 1

    def tap(self, place: Position, site: Site) -> PlannedTap | None:
        """The tap of a place; the engine asks once."""
        if site.kind == "op":
            self.seen_layer_types.add(site.layer_type)
        return self.plan.tap(self, place, site)

    def may_keep(self, site: Site) -> bool:
        """Whether something could be kept at a site that has not been seen yet."""
        return self.plan.may_keep(site)

    def begin(self, entry: str) -> PassRun | None:
        """A pass begins; None while the recorder is paused."""
        if self.paused:
            return None
        known = self._entries.get(entry)
        if known is None:
            known = self._entries.setdefault(entry, (self.catalog.entries.add(entry), count().__next__))
        ask = self.phase_of
        phase = self.phase if ask is None else self._asked(ask, entry)
        sample_id, logged = (self.call.sample_id, self.call.logged) if self.own_calls else (None, False)
        info = PassInfo(
            self._next_pass(),
            known[0],
            known[1](),
            phase,
            _grad_is_on(),
            perf_counter(),
            sample_id,
            self._marks.get(phase, 0),
        )
        return PassRun(info, logged, [], [], [])

    def end(self, run: PassRun, error: BaseException | None) -> bool:
        """A pass ended; True where its exception was a halt, and its caller may get None."""
        info = run.info
        info.duration = perf_counter() - info.started
        info.step = self._marks.get(info.phase, 0)
        if FORKS.count != self._forks:  # the pass went on in a forked child, which shares no sink with its parent
            return False
        if error is not None or run.error is not None:
            return self._end_badly(run, error)
        self._commit(info, run.variants, run.rows, run.times)
        if self.attached or self._retains_passes:
            self._committed(run)
        return False

    def _committed(self, run: PassRun) -> None:
        if self.attached:
            self._count_attached(run)
        if self._retains_passes and not self._marks:
            self.retain(steps=False)

    def _end_badly(self, run: PassRun, error: BaseException | None) -> bool:
        """The end of a pass that an exception left, or in which the model swallowed what a tap raised."""
        info = run.info
        if isinstance(error, Halt) and isinstance(run.error, Halt):
            error = run.error  # what the model's own code does on its way out may halt again
        swallowed = run.error if error is None else None
        failure = error or swallowed
        assert failure is not None
        if self._keeps_failed(run, failure):
            self._commit(run.info, run.variants, run.rows, run.times)
            self._committed(run)
        elif swallowed is None:
            return False
        if swallowed is not None and info.outcome != "halted":
            raise swallowed
        if info.outcome != "halted" or swallowed is not None:
            return False
        if not (run.logged or self.options.returns_none):
            raise SessionError(
                "halt stopped a call that a framework or your loop made, which would get None where it expects a "
                "value; make the call by rec.log(...) or inside of `with rec.region():`, or open the recorder with "
                "halt=... and returns_none=True"
            ) from error
        return True

    def _keeps_failed(self, run: PassRun, error: BaseException) -> bool:
        """Flag a pass that an exception left; False: nothing of it is kept."""
        if isinstance(error, Halt) and error is run.error:  # another recorder's halt is an exception like any other
            run.info.outcome = "halted"
            self.catalog.halted[run.info.index] = error.reason
            self._drop(run, run.stop)
            return True
        if self.options.on_forward_error == "keep":
            run.info.outcome = "failed"
            return True
        self._drop(run, 0)
        return False

    def _drop(self, run: PassRun, start: int) -> None:
        """Forget the records of a pass from one on."""
        for variant, row in zip(run.variants[start:], run.rows[start:], strict=True):
            if variant in self.columns:
                self.columns[variant].discard(row)
        del run.variants[start:], run.rows[start:], run.times[start:]

    def ask(self, predicate: Predicate, ctx: RecordContext) -> CaptureSpec | None:
        """What a rest says about an event, as a spec; errors of the user's function are told with the event."""
        try:
            return spec_of(predicate.decide(ctx), self.default)
        # The predicate is the user's code, which may raise anything.
        except Exception as error:
            self.failures.handle(predicate, ctx, error)
            return None

    def ask_halt(self, predicate: Predicate, ctx: RecordContext) -> None:
        """Stop the pass if the halt predicate says so."""
        if self.ask(predicate, ctx) is not None:
            raise Halt(f"{self.plan.halt!r} matched {ctx.label!r} ({ctx.site})")

    def mark(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Close the current step of the current phase."""
        if self.phase_of is not None:
            raise SessionError(
                "a function names the phase of each pass here, so a step could be of any phase; mark it inside of "
                "`with rec.phase('rollout'):`, by the name of its phase"
            )
        phase = self.phase
        step = self._marks.get(phase, 0)
        self.ledger.mark(phase, step, columns)
        # Only now: a mark that the sink refuses is none, and must leave no gap in the numbers.
        self._marks[phase] = step + 1

    def retain(self, *, steps: bool) -> None:
        """Let RAM keep the last steps or passes only, if that was asked for."""
        if self.options.retain is not None and self._ram is not None:
            self._ram.trim(**{"steps" if steps else "passes": self.options.retain})

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

    def _asked(self, phase_of: Callable[[str], str], entry: str) -> int:
        """The phase of a pass, as the user's function names it."""
        name = phase_of(entry)
        if not isinstance(name, str):
            raise OptionError(
                f"the function given to rec.phase returned {name!r} for the entry {entry!r}; return a name"
            )
        return self.catalog.phases.add(name)

    def _count_attached(self, run: PassRun) -> None:
        if self.attached.isdisjoint(run.variants) or self.options.retain is not None:
            return
        self.passes_attached += 1
        if self.passes_attached > 64:
            self.warn(
                "attached",
                "more than 64 passes with attached graphs are held in RAM; take them with rec.pop() after each step, "
                "or open the recorder with retain=n",
            )


class PhaseBlock:
    """A block in which passes belong to a phase.

    No generator: one that integrations enter by hand and drop would end the phase when it is collected, at any time.
    """

    def __init__(self, session: Session, name: str | Callable[[str], str]) -> None:
        self._session = session
        self._name = name

    def __enter__(self) -> None:
        session, name = self._session, self._name
        self._before = session.phase, session.phase_of
        if isinstance(name, str):
            session.phase, session.phase_of = session.catalog.phases.add(name), None
        else:
            session.phase_of = name

    def __exit__(self, *_: object) -> None:
        self._session.phase, self._session.phase_of = self._before
