"""An open session: numbers the passes, hands engines their taps, and commits what was kept.

    session = Session(options, plan, catalog, sink, ram, engine)
    engine.open(roots, session)        # an engine asks a session for taps and tells it of passes
    ...
    engine.close()
    session.close()

It is the ``Listener`` of the engine. What happens at each event is the taps' own matter, so begin and end of a pass are
all that it costs; both run once a pass of a small policy, in which a dict lookup is already worth leaving out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from time import perf_counter
from typing import Any

import numpy.typing as npt
import torch

from fastrec._errors import OptionError, SessionError
from fastrec._torch.process import FORKS
from fastrec.engines._protocol import Engine, PlannedTap
from fastrec.events.position import Position
from fastrec.events.sites import Catalog, PassInfo, Site
from fastrec.session.failures import Halt
from fastrec.session.options import RecorderOptions
from fastrec.session.plan import Plan
from fastrec.session.taps import PassRun, TapState
from fastrec.sinks import RAMSink
from fastrec.sinks._protocol import Sink

MAX_ATTACHED_PASSES = 64
"""Passes with attached graphs that RAM may hold before a warning says how to let go of them."""

_grad_is_on = torch.is_grad_enabled


class _OwnCall(threading.local):
    """What the recorder's own call in this thread said about the pass that is about to begin."""

    logged = False
    sample_id: str | int | None = None


class Session:
    """What an engine talks to while a recorder is open.

    Arguments:
        options: those of the recorder.
        plan: its predicates.
        catalog: what all passes share; it outlives the session.
        sink: where records go.
        ram: the sink in RAM, if there is one.
        engine: who obtains the events; it is opened afterwards.
    """

    def __init__(
        self,
        options: RecorderOptions,
        plan: Plan,
        catalog: Catalog,
        sink: Sink,
        ram: RAMSink | None,
        engine: Engine[PassRun],
    ) -> None:
        self.catalog = catalog
        self.seen_layer_types: set[str] = set()
        self._options = options
        self._plan = plan
        self._ram = ram
        self._taps = TapState(options, catalog, sink, engine, plan.halt, observes_ops=plan.watches_ops)
        catalog.failures = self._taps.failures.collected  # before a sink opens, which may read the list from then on
        self._pass_log = sink.open(catalog)
        self._commit = self._pass_log.commit
        self._forks = FORKS.count
        self._call = _OwnCall()
        self._own_calls = 0  # under way in any thread; without one, `_call` need not be read
        self._passes_attached = 0
        self._phase = catalog.phases.add("")
        self._phase_of: Callable[[str], str] | None = None
        self._pauses = 0
        self._marks: dict[int, int] = {}
        self._retains_passes = options.retain is not None and ram is not None
        self._next_pass = count().__next__
        self._entries: dict[str, tuple[int, Any]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Nothing more is recorded."""
        self._pass_log.close()

    def warn_about_failures(self) -> None:
        """Say at the end that predicates failed, where they were collected."""
        self._taps.failures.warn()

    @contextmanager
    def own_call(self, sample_id: str | int | None = None) -> Iterator[None]:
        """The next pass of this thread is one that the recorder itself asked for."""
        call = self._call
        with self._lock:
            self._own_calls += 1
        call.logged, call.sample_id = True, sample_id
        try:
            yield
        finally:
            call.logged, call.sample_id = False, None
            with self._lock:
                self._own_calls -= 1

    def phase(self, name: str | Callable[[str], str]) -> AbstractContextManager[None]:
        """Passes that begin inside of the block belong to a phase."""
        return _PhaseBlock(self, name)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Passes that begin inside of the block are not recorded."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def forget_attached(self) -> None:
        """The passes with attached graphs were handed over."""
        self._passes_attached = 0

    def tap(self, place: Position, site: Site) -> PlannedTap[PassRun] | None:
        """The tap of a place; the engine asks once."""
        if site.kind == "op":
            self.seen_layer_types.add(site.layer_type)
        return self._plan.tap(self._taps, place, site)

    def may_keep(self, site: Site) -> bool:
        """Whether something could be kept at a site that has not been seen yet."""
        return self._plan.may_keep(site)

    def begin(self, entry: str) -> PassRun | None:
        """A pass begins; None while the recorder is paused."""
        if self._pauses:
            return None
        known = self._entries.get(entry)
        if known is None:
            known = self._entries.setdefault(entry, (self.catalog.entries.add(entry), count().__next__))
        ask = self._phase_of
        phase = self._phase if ask is None else self._asked(ask, entry)
        sample_id, logged = (self._call.sample_id, self._call.logged) if self._own_calls else (None, False)
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
        self._commit(info, run.metas, run.rows, run.times)
        if self._taps.attached or self._retains_passes:
            self._committed(run)
        return False

    def _committed(self, run: PassRun) -> None:
        if self._taps.attached:
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
            self._commit(run.info, run.metas, run.rows, run.times)
            self._committed(run)
        elif swallowed is None:
            return False
        if swallowed is not None and info.outcome != "halted":
            raise swallowed
        if info.outcome != "halted" or swallowed is not None:
            return False
        if not (run.logged or self._options.returns_none):
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
        if self._options.on_forward_error == "keep":
            run.info.outcome = "failed"
            return True
        self._drop(run, 0)
        return False

    def _drop(self, run: PassRun, start: int) -> None:
        """Forget the records of a pass from one on."""
        for meta, row in zip(run.metas[start:], run.rows[start:], strict=True):
            if meta in self._taps.columns:
                self._taps.columns[meta].discard(row)
        del run.metas[start:], run.rows[start:], run.times[start:]

    def mark(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Close the current step of the current phase."""
        if self._phase_of is not None:
            raise SessionError(
                "a function names the phase of each pass here, so a step could be of any phase; mark it inside of "
                "`with rec.phase('rollout'):`, by the name of its phase"
            )
        phase = self._phase
        step = self._marks.get(phase, 0)
        self._pass_log.mark(phase, step, columns)
        # Only now: a mark that the sink refuses is none, and must leave no gap in the numbers.
        self._marks[phase] = step + 1

    def retain(self, *, steps: bool) -> None:
        """Let RAM keep the last steps or passes only, if that was asked for."""
        if self._options.retain is not None and self._ram is not None:
            self._ram.trim(**{"steps" if steps else "passes": self._options.retain})

    def _asked(self, phase_of: Callable[[str], str], entry: str) -> int:
        """The phase of a pass, as the user's function names it."""
        name = phase_of(entry)
        if not isinstance(name, str):
            raise OptionError(
                f"the function given to rec.phase returned {name!r} for the entry {entry!r}; return a name"
            )
        return self.catalog.phases.add(name)

    def _count_attached(self, run: PassRun) -> None:
        if self._taps.attached.isdisjoint(run.metas) or self._options.retain is not None:
            return
        self._passes_attached += 1
        if self._passes_attached > MAX_ATTACHED_PASSES:
            self._taps.warn(
                "attached",
                f"more than {MAX_ATTACHED_PASSES} passes with attached graphs are held in RAM; take them with "
                "rec.pop() after each step, "
                "or open the recorder with retain=n",
            )


class _PhaseBlock:
    """A block in which passes belong to a phase.

    No generator: one that integrations enter by hand and drop would end the phase when it is collected, at any time.
    """

    def __init__(self, session: Session, name: str | Callable[[str], str]) -> None:
        self._session = session
        self._name = name

    def __enter__(self) -> None:
        session, name = self._session, self._name
        self._before = session._phase, session._phase_of
        if isinstance(name, str):
            session._phase, session._phase_of = session.catalog.phases.add(name), None
        else:
            session._phase_of = name

    def __exit__(self, *_: object) -> None:
        self._session._phase, self._session._phase_of = self._before
