"""What the parts promise each other: predicates, engines and sinks slot in by these protocols alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Protocol

import torch
from torch import nn

from fastrec.events.position import Position
from fastrec.events.sites import Frame, Site
from fastrec.ops.facts import OpFacts


class Run(Protocol):
    """One pass while it runs; the engine hands it from the listener to the taps.

    ``parents`` are the labels of the values that the current op read, where an engine was asked to follow them.
    """

    parents: tuple[str, ...] | None

    def fail(self, error: BaseException) -> None:
        """Let the pass end with an error, even if the model swallows it."""


class Tap(Protocol):
    """The callable that an engine feeds with the values of one site; no mode sees what it does with them."""

    def __call__(self, run: Any, value: torch.Tensor) -> None: ...


MakeSkipTest = Callable[[Sequence[Tap]], Callable[[Any], bool] | None]
"""Of some taps, a question about a Run that begins: whether none of them will keep anything; None: one may always."""

PassFilter = Callable[[Any], bool]
"""Asked of a Run that has begun: whether something of it could be kept."""


class PassBatch(Protocol):
    """Taps that are fed together when a pass ends, with values that nobody wrote to meanwhile."""

    def is_ready(self) -> bool:
        """Whether the values of the pass that begins are to be held for it; else its taps are fed one by one."""

    def __call__(self, run: Any, values: list[torch.Tensor], times: list[float]) -> None:
        """Feed the taps, in event order, from a list that alone has the values; the first few if the pass failed."""


MakePassBatch = Callable[[Sequence[Tap], Sequence[int] | None], PassBatch | None]
"""A batch of some taps, given the version of each value when a pass ends; None where one has to be fed at its event.

Without versions the values have just been computed when they are handed over."""


class Listener(Protocol):
    """Whom an engine tells what happens: it asks once per place, then feeds the taps that it was given."""

    def tap(self, place: Position, site: Site) -> Tap | None:
        """The tap of a place (with the site of this leaf of its value), or None: nothing can be kept there."""

    def may_keep(self, site: Site) -> bool:
        """Whether something could be kept at a site that has not been seen yet."""

    def begin(self, entry: str) -> Any:
        """A pass begins; its Run, or None: it is not recorded."""

    def end(self, run: Any, error: BaseException | None) -> bool:
        """A pass ended, with the exception that left it if there was one; True: the call returns None instead."""


class OpRunner(Listener, Protocol):
    """A listener that runs the ops itself, and so sees what goes into them."""

    def perform(
        self, facts: OpFacts, label: str, site: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an op, which is called so if it proves to be an event; its value."""

    def compose(
        self, place: Position, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inside: Callable[[], Any]
    ) -> Any:
        """Run a composite, which performs the ops inside of it; its value."""

    def glance(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function that is no event, such as ``bool(x)``; its value."""

    def enter(self, place: Position, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called."""

    def leave(self, place: Position, out: Any) -> None:
        """A module returned."""

    def hidden(self, place: Position, module: nn.Module, out: Any) -> None:
        """A module returned of whose inside nothing was seen; ``leave`` follows."""

    def raised(self, place: Position) -> None:
        """An exception left a module that was entered at a place."""


class PlannedTap(Tap, Protocol):
    """A tap for an engine that has to know beforehand what is done with the values."""

    @property
    def attached(self) -> bool:
        """Whether the values may have to carry gradients."""


class PlanningListener(Protocol):
    """A listener for an engine that prepares what a pass keeps before it runs."""

    def tap(self, place: Position, site: Site) -> PlannedTap | None:
        """As a listener's."""

    def may_keep(self, site: Site) -> bool:
        """As a listener's."""

    def begin(self, entry: str) -> Any:
        """As a listener's."""

    def end(self, run: Any, error: BaseException | None) -> bool:
        """As a listener's."""


class Engine(Protocol):
    """How events are obtained.

    Where it ``is_compiled``, values are outputs of compiled code and not the model's own.
    """

    @property
    def is_compiled(self) -> bool: ...

    def open(self, roots: Mapping[str, Any], listener: Any) -> None:
        """Begin to watch the roots."""

    def frames(self) -> Sequence[Frame]:
        """The modules that it knows, for messages."""

    def called(self) -> Set[str]:
        """The addresses of those that were called, for messages."""

    def unseen(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function in this thread of which nothing is recorded, whatever part of the model it calls."""

    def close(self) -> None:
        """Stop, and leave nothing behind."""


class Region(Protocol):
    """An engine that can make everything that runs in a block one pass."""

    def enter_region(self, name: str) -> Any:
        """A region begins; what ``leave_region`` wants back."""

    def leave_region(self, token: Any, error: BaseException | None) -> bool:
        """The region ended; True: its exception goes no further."""
