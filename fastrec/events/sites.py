"""The facts that many records share, stored once: sites, metas, passes, and the catalog that numbers them.

A record itself is four numbers (its meta, its row among the kept values, its pass, its time), so a million records are
not a million Python objects. The numbers lead from one fact to the next:

    meta = catalog.metas[record_meta]  # what varies between passes that ran differently: label, shape, dtype, ...
    site = catalog.sites[meta.site]  # what is the same in every pass: the place in the model
    spec = catalog.specs[meta.spec]  # how its values were copied
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Hashable, Iterable
from time import perf_counter
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

import msgspec

from fastrec.events.capture import CaptureSpec
from fastrec.events.process import Process

T = TypeVar("T")

Kind = Literal["op", "module_enter", "module_exit", "input", "buffer"]

KINDS: tuple[Kind, ...] = get_args(Kind)

Outcome = Literal["ok", "failed", "halted"]
"""How a pass ended."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One module on the call stack: its address, its class, and the other addresses that lead to the same module."""

    module_address: str
    module_type: str
    aliases: tuple[str, ...] = ()


class Site(msgspec.Struct, frozen=True, gc=False):
    """A place where events happen, the same in every pass.

    ``frames`` are the modules on the call stack, outermost first. The last one is the module in which an op runs; for
    a module event it is the module itself.
    """

    name: str
    kind: Kind
    layer_type: str
    func_name: str
    frames: tuple[Frame, ...] = ()
    output_index: int | None = None
    output_address: str = ""
    is_bottom_level_func: bool = True

    @property
    def module_address(self) -> str:
        return self.frames[-1].module_address if self.frames else ""

    @property
    def module_type(self) -> str:
        return self.frames[-1].module_type if self.frames else ""


class RecordMeta(msgspec.Struct, frozen=True, gc=False):
    """What the records of one site share in all passes that ran alike.

    ``label`` is chronological (``relu_3``), and ``number`` is its 3. ``event_index`` and ``op_index`` are None where
    the engine did not see the events that it would have to count. ``recent_events`` and ``recent_ops`` hold triples of
    site number, number and label, newest last; they are None where ops were not observed.
    """

    site: int
    label: str
    number: int
    op_index: int | None
    event_index: int | None
    module_pass: int
    stack_passes: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    device: str
    requires_grad: bool
    spec: int
    recent_events: tuple[tuple[int, int, str], ...] | None
    recent_ops: tuple[tuple[int, int, str], ...] | None
    parents: tuple[str, ...] | None = None


SampleId: TypeAlias = str | int | tuple[str | int, ...]
"""What a pass was logged with: one id, or one for each sample of its batch."""


class PassInfo(msgspec.Struct):
    """One pass: an outermost call into a recorded root, or a region.

    ``started`` is a time of ``time.perf_counter``; ``duration`` is in seconds. ``step`` is how many steps had been
    marked in its phase when the pass ended. ``grad`` is whether gradients were on when it began.
    """

    index: int
    entry: int
    entry_pass: int
    phase: int
    grad: bool
    started: float
    sample_id: SampleId | None = None
    step: int = 0
    duration: float = 0.0
    outcome: Outcome = "ok"


class Origin(msgspec.Struct, frozen=True):
    """One of several recordings that were merged.

    Its passes have the indices from ``first_pass`` up to, but not including, ``first_pass + passes``; ``phases`` are
    the numbers of its phases. ``rank`` is unique among the merged recordings; ``run`` and ``pid`` come from its files.
    ``began`` is in seconds since 1970, and ``header`` holds the options of its recorder. ``process`` is the one that
    recorded: ``rank`` is only a number in the order given where the ranks of processes are unknown.
    """

    rank: int
    pid: int
    run: str
    passes: int
    began: float = 0.0
    header: dict[str, Any] = {}
    first_pass: int = 0
    phases: tuple[int, ...] = ()
    process: Process = Process()


class Interned(Generic[T]):
    """A list in which equal items share one number; items are added and never removed."""

    def __init__(self, items: Iterable[T] = ()) -> None:
        self.items: list[T] = []
        self._numbers: dict[Hashable, int] = {}
        self._lock = threading.Lock()
        for item in items:
            self.append(item)

    def add(self, item: T) -> int:
        """Return the number of an item; a new item is added."""
        number = self._numbers.get(item)
        if number is None:
            with self._lock:
                number = self._numbers.get(item)
                if number is None:
                    number = len(self.items)
                    self.items.append(item)
                    # Last, because other threads look a number up without the lock and then index ``items`` with it.
                    self._numbers[item] = number
        return number

    def append(self, item: T) -> int:
        """Add an item even if an equal one is there, and return its number; ``add`` still returns the first number.

        Phases of different sessions or ranks stay apart in one recording, even where they have the same name.
        """
        with self._lock:
            number = len(self.items)
            self.items.append(item)
            self._numbers.setdefault(item, number)
        return number

    def __getitem__(self, number: int) -> T:
        return self.items[number]

    def __len__(self) -> int:
        return len(self.items)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Interned, (list(self.items),))  # a lock can't be pickled


class Catalog:
    """All that the records of a session share: sites, metas, capture specs, entries and phases, each by number.

    ``header`` holds the options of the recorder, and ``began`` the time of ``time.perf_counter`` when the session
    began. ``halted`` maps a pass index to the reason for which that pass was halted. ``failures`` are the collected
    ``PredicateFailure``s; ``origins`` are the recordings that were merged, where some were.
    """

    def __init__(self, header: dict[str, Any] | None = None) -> None:
        self.header = header or {}
        self.began = perf_counter()
        self.sites: Interned[Site] = Interned()
        self.metas: Interned[RecordMeta] = Interned()
        self.specs: Interned[CaptureSpec] = Interned()
        self.entries: Interned[str] = Interned()
        self.phases: Interned[str] = Interned()
        self.halted: dict[int, str] = {}
        self.failures: list[Any] = []
        self.origins: list[Origin] = []

    def site_of(self, meta: int) -> Site:
        """The site of a meta, by the meta's number."""
        return self.sites[self.metas[meta].site]

    def rank_of_pass(self, pass_index: int) -> int | None:
        """The rank of the process that a pass ran in, -1 where it is not known; None where only one recorded."""
        after = bisect_right(self.origins, pass_index, key=lambda origin: origin.first_pass)
        return self.origins[after - 1].rank if after else None

    def rank_of_phase(self, phase: int) -> int | None:
        """The same of a phase, by its number."""
        origin = self.origin_of_phase(phase)
        return None if origin is None else origin.rank

    def origin_of_phase(self, phase: int) -> Origin | None:
        """The recording that a phase is of, where several were merged: each has phases of its own."""
        return next((origin for origin in self.origins if phase in origin.phases), None)
