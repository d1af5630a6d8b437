"""The append-only tables that all passes of a session share, in RAM as in a file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from time import perf_counter
from typing import Any, Generic, TypeVar

from fastrec._capture import CaptureSpec
from fastrec._sites import Origin, Site, Variant

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
    """Sites, variants, capture specs, entries and phases by number, and the header of the session.

    ``began`` is when the session began, on the clock of ``time.perf_counter``. ``halted`` holds the reason by pass
    index; ``failures`` the collected predicate failures; ``origins`` what was merged, if it was.
    """

    def __init__(self, header: dict[str, Any] | None = None) -> None:
        self.header = header or {}
        self.began = perf_counter()
        self.sites: Interned[Site] = Interned()
        self.variants: Interned[Variant] = Interned()
        self.specs: Interned[CaptureSpec] = Interned()
        self.entries: Interned[str] = Interned()
        self.phases: Interned[str] = Interned()
        self.halted: dict[int, str] = {}
        self.failures: list[Any] = []
        self.origins: list[Origin] = []

    def site_of(self, variant: int) -> Site:
        """The site of a variant, by the variant's number."""
        return self.sites[self.variants[variant].site]

    def site_ids(self, wanted: Callable[[Site], bool]) -> list[int]:
        """The numbers of all sites that a function picks."""
        return [i for i, site in enumerate(self.sites.items) if wanted(site)]
