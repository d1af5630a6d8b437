"""An open session: numbers the passes, gives the engine its taps, and commits what was kept.

    session = Session(options, plan, catalog, sink, ram, engine)
    engine.open(roots, session)  # the engine asks the session for taps, and says when passes begin and end
    ...
    engine.close()
    session.close()

It is the ``Listener`` of the engine. What happens at each event is up to the taps, so the session runs only when a pass
begins and ends. For a small policy that is often enough that each dict lookup left out there can be measured.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from time import perf_counter

import torch

from fastrec._errors import OptionError, SessionError
from fastrec._torch.process import FORKS
from fastrec.engines._protocol import Engine, PlannedTap
from fastrec.events.position import Position
from fastrec.events.sites import Catalog, PassInfo, SampleId, Site
from fastrec.predicates import NEVER
from fastrec.predicates._base import Constant
from fastrec.recording._source import Array
from fastrec.session.autoreset import EndsOfEnvironments
from fastrec.session.failures import Halt
from fastrec.session.options import RecorderOptions
from fastrec.session.plan import Plan
from fastrec.session.taps import PassRun, TapState, make_tap
from fastrec.sinks import RAMSink
from fastrec.sinks._protocol import Sink
from fastrec.sinks.ram.pool import UncopiedPass

MAX_ATTACHED_PASSES = 64
"""Passes with attached graphs in RAM, above which a warning says how to let go of them."""

_grad_is_on = torch.is_grad_enabled


class _OwnCall(threading.local):
    """What ``rec.log`` or a region in this thread says about the pass that is about to begin."""

    logged = False
    sample_id: SampleId | None = None


class Session:
    """What an engine talks to while a recorder is open.

    Arguments:
        options: those of the recorder.
        plan: its predicates.
        catalog: what all passes share; it outlives the session.
        sink: where records go.
        ram: the sink in RAM, if there is one.
        engine: obtains the events; it is opened afterwards.
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
        self.selected_modules: dict[str, str] = {}  # addresses and types of those whose every output is kept
        self._options = options
        self._plan = plan
        self._ram = ram
        self._taps = TapState(options, catalog, sink, engine, plan.halt, observes_ops=plan.watches_ops)
        self._taps.keeps_gradients = ram is not None
        catalog.failures = self._taps.failures.collected  # before the sink opens, which may read this list from then on
        self._pass_log = sink.open(catalog)
        self._commit = self._pass_log.commit
        self._forks = FORKS.count
        self._call = _OwnCall()
        self._n_own_calls = 0  # in all threads; while there is none, nobody reads the thread-local `_call`
        self._n_attached_passes = 0
        self._phase = catalog.phases.add("")
        self._name_phase: Callable[[str], str] | None = None
        self._n_pauses = 0
        self._step_of_phase: dict[int, int] = {}
        self._ends = EndsOfEnvironments() if options.autoreset is None else None
        self._retains_passes = options.retain is not None and ram is not None
        self._next_pass = count().__next__
        self._entries: dict[str, tuple[int, Callable[[], int]]] = {}  # their numbers, and counters of their passes
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the session; nothing more is recorded."""
        self._pass_log.close()

    def warn_about_failures(self) -> None:
        """Warn at the end that predicates failed, where failures were collected."""
        self._taps.failures.warn()

    def message_about_autoreset(self) -> str | None:
        """What to warn of at the end, where nobody said how environments that ended reset."""
        return None if self._ends is None else self._ends.message()

    @contextmanager
    def own_call(self, sample_id: SampleId | None = None) -> Iterator[None]:
        """The next pass of this thread is a call that the recorder itself makes."""
        call = self._call
        with self._lock:
            self._n_own_calls += 1
        call.logged, call.sample_id = True, sample_id
        try:
            yield
        finally:
            call.logged, call.sample_id = False, None
            with self._lock:
                self._n_own_calls -= 1

    def phase(self, name: str | Callable[[str], str]) -> AbstractContextManager[None]:
        """Passes that begin inside the block belong to a phase."""
        return _PhaseBlock(self, name)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Passes that begin inside the block are not recorded."""
        self._n_pauses += 1
        try:
            yield
        finally:
            self._n_pauses -= 1

    def modules_without_tensors(self) -> dict[str, str]:
        """The addresses and types of modules whose outputs were selected, and which returned nothing that was kept."""
        kept = {self.catalog.site_of(meta).module_address for meta in range(len(self.catalog.metas))}
        return {address: name for address, name in self.selected_modules.items() if address not in kept}

    def forget_attached(self) -> None:
        """The passes with attached graphs were popped, so the warning counts anew."""
        self._n_attached_passes = 0

    def tap(self, position: Position, site: Site) -> PlannedTap[PassRun] | None:
        """The tap for a leaf of the value at a position; the engine asks once."""
        if site.kind == "op":
            self.seen_layer_types.add(site.layer_type)
        keep, halt = self._plan.narrow(position, site, self._taps.meta_maker)
        if site.kind == "module_exit" and isinstance(keep, Constant) and keep is not NEVER:
            self.selected_modules[site.module_address] = site.module_type
        return make_tap(self._taps, position, site, keep, halt)

    def may_keep(self, site: Site) -> bool:
        """Whether something could be kept at a site that has not been seen yet."""
        return self._plan.may_keep(site)

    def begin(self, entry: str) -> PassRun | None:
        """A pass begins; None while the recorder is paused."""
        if self._n_pauses:
            return None
        number_and_counter = self._entries.get(entry)
        if number_and_counter is None:
            number_and_counter = self._entries.setdefault(entry, (self.catalog.entries.add(entry), count().__next__))
        name_phase = self._name_phase
        phase = self._phase if name_phase is None else self._phase_of_entry(name_phase, entry)
        sample_id, logged = (self._call.sample_id, self._call.logged) if self._n_own_calls else (None, False)
        info = PassInfo(
            self._next_pass(),
            number_and_counter[0],
            number_and_counter[1](),
            phase,
            _grad_is_on(),
            perf_counter(),
            sample_id,
            self._step_of_phase.get(phase, 0),
        )
        return PassRun(info, logged, [], [], [])

    def end(self, run: PassRun, error: BaseException | None) -> bool:
        """A pass ended; True if its exception was a halt and its caller gets None instead."""
        info = run.info
        info.duration = perf_counter() - info.started
        info.step = self._step_of_phase.get(info.phase, 0)
        if FORKS.count != self._forks:  # the pass went on in a forked child, which must not write to its parent's sink
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
        if self._retains_passes and not self._step_of_phase:
            self.retain(steps=False)

    def _end_badly(self, run: PassRun, error: BaseException | None) -> bool:
        """The end of a pass that raised, or in which the model swallowed what a tap raised."""
        info = run.info
        if isinstance(error, Halt) and isinstance(run.error, Halt):
            error = run.error  # the first halt: code of the model that runs while the pass unwinds may halt again
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
                "value; make the call by rec.log(...) or inside `with rec.region():`, or open the recorder with "
                "halt=... and returns_none=True"
            ) from error
        return True

    def _keeps_failed(self, run: PassRun, error: BaseException) -> bool:
        """Flag a pass that raised; False: nothing of it is kept."""
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
        """Forget the records of a pass from position ``start`` on."""
        if isinstance(run.rows, UncopiedPass):
            # It has no rows yet that could be discarded, and the list of metas is shared by all passes like it.
            run.metas, run.rows, run.times = [], [], []
            return
        for meta, row in zip(run.metas[start:], run.rows[start:], strict=True):
            if meta in self._taps.columns:
                self._taps.columns[meta].discard(row)
        del run.metas[start:], run.rows[start:], run.times[start:]

    def mark(self, columns: Mapping[str, Array]) -> None:
        """Close the current step of the current phase."""
        if self._name_phase is not None:
            raise SessionError(
                "a function names the phase of each pass here, so a step could be of any phase; mark it inside "
                "`with rec.phase('rollout'):`, with the name of its phase"
            )
        phase = self._phase
        step = self._step_of_phase.get(phase, 0)
        self._pass_log.mark(phase, step, columns)
        if self._ends is not None:
            self._ends.see(phase, columns)
        # After the sink has accepted it, so that a refused mark leaves no gap in the numbers.
        self._step_of_phase[phase] = step + 1

    def retain(self, *, steps: bool) -> None:
        """Let RAM forget what ``retain`` does not keep."""
        if self._options.retain is not None and self._ram is not None:
            self._ram.trim(**{"steps" if steps else "passes": self._options.retain})

    def _phase_of_entry(self, name_phase: Callable[[str], str], entry: str) -> int:
        """The phase of a pass, by the user's function."""
        name = name_phase(entry)
        if not isinstance(name, str):
            raise OptionError(
                f"the function given to rec.phase returned {name!r} for the entry {entry!r}; return a name"
            )
        return self.catalog.phases.add(name)

    def _count_attached(self, run: PassRun) -> None:
        if self._taps.attached.isdisjoint(run.metas) or self._options.retain is not None:
            return
        self._n_attached_passes += 1
        if self._n_attached_passes > MAX_ATTACHED_PASSES:
            self._taps.warn(
                "attached",
                f"more than {MAX_ATTACHED_PASSES} passes with attached graphs are held in RAM; take them with "
                "rec.pop() after each step, or open the recorder with retain=n",
            )


class _PhaseBlock:
    """A block in which passes belong to a phase.

    It is no generator with ``@contextmanager``: integrations enter such a block by hand, and a generator that they drop
    would end the phase whenever it is garbage collected.
    """

    def __init__(self, session: Session, name: str | Callable[[str], str]) -> None:
        self._session = session
        self._name = name

    def __enter__(self) -> None:
        session, name = self._session, self._name
        self._outer = session._phase, session._name_phase
        if isinstance(name, str):
            session._phase, session._name_phase = session.catalog.phases.add(name), None
        else:
            session._name_phase = name

    def __exit__(self, *_: object) -> None:
        self._session._phase, self._session._name_phase = self._outer
