"""The contract between engines and those whom they serve: what an engine calls, and what can be asked of an engine.

    engine.open({"": model}, listener)      # from now on, calls of the model are passes
    tap = listener.tap(position, site)      # the engine asks once per place who wants the values that appear there
    run = listener.begin("")                # a pass begins,
    tap(run, value)                         # its values are fed to the taps,
    listener.end(run, None)                 # and it ends
    engine.close()

Engines know sites and taps; they know nothing of predicates, records and sinks. What a listener makes of a pass while
it runs is its own matter: the engine only carries it from ``begin`` to the taps and to ``end``. Its type is ``RunT``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

from fastrec.events.position import Position
from fastrec.events.sites import Frame, Site
from fastrec.ops.facts import OpFacts


class Run(Protocol):
    """One pass while it runs.

    ``parents`` are the labels of the events whose values the current op read, where the engine follows them.
    ``error`` is what ``fail`` was given first.
    """

    parents: tuple[str, ...] | None
    error: BaseException | None

    def fail(self, error: BaseException) -> None:
        """Let the pass end with an error, even if the model swallows it."""


class BasicRun:
    """A run without anything of the listener's own."""

    def __init__(self) -> None:
        self.parents: tuple[str, ...] | None = None
        self.error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """Let the pass end with an error, even if the model swallows it."""
        self.error = self.error or error


RunT = TypeVar("RunT", bound=Run)

RunT_contra = TypeVar("RunT_contra", bound=Run, contravariant=True)

ResultT = TypeVar("ResultT")


class Tap(Protocol[RunT_contra]):
    """What an engine feeds with the values of one site; function modes do not see what a tap does with them."""

    def __call__(self, run: RunT_contra, value: Tensor, /) -> None: ...


class PlannedTap(Tap[RunT_contra], Protocol[RunT_contra]):
    """A tap that tells beforehand what it does with the values, for an engine that has to prepare them."""

    @property
    def attached(self) -> bool:
        """Whether the values may have to carry gradients."""


class Listener(Protocol[RunT]):
    """Whom an engine tells what happens."""

    def tap(self, position: Position, site: Site) -> Tap[RunT] | None:
        """The tap of one leaf of the value at a position, which is at this site; None: nothing is kept there."""

    def may_keep(self, site: Site) -> bool:
        """Whether something could be kept at a site that has not been seen yet."""

    def begin(self, entry: str) -> RunT | None:
        """A pass begins; None: it is not recorded."""

    def end(self, run: RunT, error: BaseException | None) -> bool:
        """A pass ended, with the exception that left it if there was one; True: the call returns None instead."""


class PlanningListener(Listener[RunT], Protocol[RunT]):
    """A listener for an engine that prepares what a pass keeps before it runs."""

    def tap(self, position: Position, site: Site) -> PlannedTap[RunT] | None:
        """As a listener's, but each tap tells what it does with the values."""


class OpRunner(Listener[RunT], Protocol[RunT]):
    """A listener that runs the ops itself, and so sees what goes into them.

    What these methods return is what the model gets, except where they return None.
    """

    def on_op(
        self,
        facts: OpFacts,
        label: str,
        site: str,
        func: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        """Run an op and return its value; the label and the site are its own if the value proves to be an event."""

    def on_composite(
        self,
        position: Position,
        func: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        run_inside: Callable[[], object],
    ) -> object:
        """Run a composite by calling ``run_inside``, which runs the ops that it is made of; return its value."""

    def on_other_function(
        self, func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Run a function that is no event, such as ``bool(x)``, and return its value."""

    def on_enter(self, position: Position, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """A module is called."""

    def on_leave(self, position: Position, out: object) -> None:
        """A module returned."""

    def on_opaque_module(self, position: Position, module: nn.Module, out: object) -> None:
        """A module returned whose inside was not seen; ``on_leave`` follows."""

    def on_thread_start(self, position: Position, name: str) -> None:
        """Work was given to another thread, whose ops are not seen, by the method of this name."""

    def on_exception(self, position: Position) -> None:
        """An exception left a module that was entered."""


class PassBatch(Protocol[RunT_contra]):
    """Taps that are fed together when a pass ends, with values that nobody wrote to in the meantime."""

    def is_ready(self) -> bool:
        """Whether to hold the values of the pass that begins until its end; otherwise taps are fed one by one."""

    def __call__(self, run: RunT_contra, values: list[Tensor], times: list[float], /) -> None:
        """Feed the taps, in the order of events; after a failure there are only the first few values.

        Nobody but this list has the values.
        """


MakePassBatch = Callable[[Sequence[Tap[RunT]], Sequence[int] | None], PassBatch[RunT] | None]
"""Makes the batch of some taps, or None where one of them has to be fed at its event.

The numbers are the versions that the values have when a pass ends; without them, the values have just been computed
when they are handed over."""

PassFilter = Callable[[RunT], bool]
"""Whether something of a pass that begins could be kept."""

MakeSkipTest = Callable[[Sequence[Tap[RunT]]], Callable[[RunT], bool] | None]
"""Makes a test that is asked about a pass that begins: whether none of some taps will keep anything of it.

None where one of the taps always may."""


class WatchOptions(NamedTuple):
    """What is an event.

    Arguments:
        ops: ops; without them only modules are seen, at less cost.
        sources: inputs and buffers that are read; ops are then events too.
        parents: taps are told which events each value came from; ops are then events too.
    """

    ops: bool = True
    sources: bool = False
    parents: bool = False

    @property
    def sees_ops(self) -> bool:
        return self.ops or self.sources or self.parents


WATCH_OPS = WatchOptions()


class Engine(Protocol[RunT]):
    """How events are obtained.

    Where it ``is_compiled``, values are outputs of compiled code and not the model's own.
    """

    @property
    def is_compiled(self) -> bool: ...

    def open(self, roots: Mapping[str, nn.Module], listener: PlanningListener[RunT], /) -> None:
        """Begin to watch the roots, in all threads."""

    def close(self) -> None:
        """Stop, and leave nothing behind."""

    def enter_region(self, name: str) -> object | None:
        """Make everything that this thread runs from now on one pass.

        Returns what ``leave_region`` has to be given, or None where the listener does not record the pass.
        """

    def leave_region(self, region: object, error: BaseException | None) -> bool:
        """The region ended; True: the exception that left it goes no further."""

    def unseen(self, function: Callable[..., ResultT], *args: object) -> ResultT:
        """Run a function in this thread without recording anything, whatever part of the model it calls."""

    def frames(self) -> Sequence[Frame]:
        """The modules that it knows, for messages."""

    def called(self) -> Set[str]:
        """The addresses of the modules that were called, for messages."""
