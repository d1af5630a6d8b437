"""What is stored once: places where events happen, and what varies between passes that ran differently."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from time import perf_counter
from typing import Any, Generic, Literal, TypeVar

import msgspec

from fastrec.events.capture import CaptureSpec

Kind = Literal["op", "module_enter", "module_exit", "input", "buffer"]

KINDS: tuple[Kind, ...] = ("op", "module_enter", "module_exit", "input", "buffer")


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One module on the stack of calls: where it sits, what it is, and under which other addresses it is reachable."""

    module_address: str
    module_type: str
    aliases: tuple[str, ...] = ()


class Site(msgspec.Struct, frozen=True, gc=False):
    """A place where events happen, the same in every pass.

    ``frames`` are the modules on the stack, outermost first, the module of the site included; for a module event
    the last frame is the module itself.
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

    ``label`` is chronological (``relu_3``); ``number`` is the 3 of it. Indices are None where the engine did not see
    what it takes to count them. ``recent_events`` and ``recent_ops`` hold (site id, number, label) triples, newest
    last, or None where operations were not observed.
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


class PassInfo(msgspec.Struct):
    """One pass: an outermost call into a recorded root, or a region.

    ``started`` is on the clock of ``time.perf_counter``, ``duration`` in seconds. ``step`` counts the marks of the
    pass's phase that were made before it ended. ``grad`` tells whether gradients were on when it began.
    """

    index: int
    entry: int
    entry_pass: int
    phase: int
    grad: bool
    started: float
    sample_id: str | int | None = None
    step: int = 0
    duration: float = 0.0
    outcome: Literal["ok", "failed", "halted"] = "ok"


class Origin(msgspec.Struct, frozen=True):
    """One of several recordings that were merged.

    Its passes have the indices from ``first_pass`` to ``first_pass + passes``; ``phases`` are the numbers of its own
    phases. ``rank`` tells it from the others, ``run`` and ``pid`` are what its files say; ``began`` is in seconds since
    1970, ``header`` its recorder's options.
    """

    rank: int
    pid: int
    run: str
    passes: int
    began: float = 0.0
    header: dict[str, Any] = {}
    first_pass: int = 0
    phases: tuple[int, ...] = ()


T = TypeVar("T")


class Interned(Generic[T]):
    """A list in which equal items have one number; items are only ever added."""

    def __init__(self, items: Iterable[T] = ()) -> None:
        self.items: list[T] = []
        self._numbers: dict[Hashable, int] = {}
        self._lock = threading.Lock()
        for item in items:
            self.append(item)

    def add(self, item: T) -> int:
        """The number of an item, which is added if it is new."""
        number = self._numbers.get(item)
        if number is None:
            with self._lock:
                number = self._numbers.get(item)
                if number is None:
                    number = len(self.items)
                    self.items.append(item)
                    self._numbers[item] = number  # last, for others look here without the lock
        return number

    def append(self, item: T) -> int:
        """The number of an item, which is added even where an equal one has a number, that it keeps."""
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
    """Sites, metas, capture specs, entries and phases by number, and the header of the session.

    ``began`` is when the session began, on the clock of ``time.perf_counter``. ``halted`` holds the reason by pass
    index; ``failures`` the collected predicate failures; ``origins`` what was merged, if it was.
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

    def site_ids(self, wanted: Callable[[Site], bool]) -> list[int]:
        """The numbers of all sites that a function picks."""
        return [i for i, site in enumerate(self.sites.items) if wanted(site)]
