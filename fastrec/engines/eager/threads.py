"""Seeing that a pass hands work to another thread, where its function mode does not follow.

    THREAD_STARTS.add(on_start)     # on_start(name) is called in the thread that starts another or fills a pool
    THREAD_STARTS.remove(on_start)  # Thread.start and the methods of pools are what they were

A function mode belongs to one thread, and what runs in several at once has no order. So the ops of the other thread are
not recorded, and whoever records is told. Only work that was given a tensor or a module counts: models also start
threads that log, show progress or load data.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing.pool import ThreadPool
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from fastrec._torch.process import FORKS

OnStart = Callable[[str], None]
"""Is told what was called, such as ``ThreadPoolExecutor.submit``."""

_STARTS: tuple[tuple[type, str], ...] = (
    (threading.Thread, "start"),
    (ThreadPoolExecutor, "submit"),  # its `map` calls it
    (ThreadPool, "apply_async"),  # its `apply` calls it
    (ThreadPool, "imap"),
    (ThreadPool, "imap_unordered"),
    (ThreadPool, "map"),
    (ThreadPool, "map_async"),
    (ThreadPool, "starmap"),
    (ThreadPool, "starmap_async"),
)

MAX_DEPTH = 4
"""How deep the arguments and closures of the work are looked into."""

MAX_PARTS = 64
"""How many parts of each are looked at."""


class ThreadStarts:
    """Those who are told when this process starts threads or gives work to them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._listeners: list[OnStart] = []
        self._originals: list[tuple[type, str, Any]] = []
        FORKS.call_in_child(self._forget_listeners)

    def add(self, on_start: OnStart) -> None:
        """Tell somebody from now on."""
        with self._lock:
            self._listeners = [*self._listeners, on_start]
            if not self._originals:
                self._install()

    def remove(self, on_start: OnStart) -> None:
        """Tell somebody no more; the last one leaves the classes as they were."""
        with self._lock:
            self._listeners = [listener for listener in self._listeners if listener != on_start]
            if not self._listeners:
                self._restore()

    def _install(self) -> None:
        for cls, name in _STARTS:
            self._originals.append((cls, name, vars(cls).get(name)))
            setattr(cls, name, self._telling(getattr(cls, name), f"{cls.__name__}.{name}"))

    def _restore(self) -> None:
        originals, self._originals = self._originals, []
        for cls, name, original in originals:
            if original is None:  # of a base class
                delattr(cls, name)
            else:
                setattr(cls, name, original)

    def _telling(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def method_that_tells(owner: Any, /, *args: Any, **kwargs: Any) -> Any:
            work = vars(owner) if isinstance(owner, threading.Thread) else (args, kwargs)
            if _holds_tensors(work, MAX_DEPTH):
                for listener in self._listeners:
                    listener(name)
            return method(owner, *args, **kwargs)

        return method_that_tells

    def _forget_listeners(self) -> None:
        # As for module calls: a lock may have been held by a thread of the parent.
        self._lock = threading.RLock()
        self._listeners = []
        self._restore()


def _holds_tensors(value: Any, depth: int) -> bool:
    """Whether a function or its arguments hold a tensor or a module."""
    if isinstance(value, Tensor | nn.Module):
        return True
    if depth == 0:
        return False
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    elif isinstance(value, partial):
        parts = (value.func, value.args, value.keywords)
    elif isinstance(value, MethodType):
        parts = (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        cells = value.__closure__ or ()
        parts = (value.__defaults__ or (), *(cell.cell_contents for cell in cells if cell != _EMPTY_CELL))
    return any(_holds_tensors(part, depth - 1) for part in islice(parts, MAX_PARTS))


_EMPTY_CELL = CellType()
"""Equal to every cell without contents, as that of a variable that gets its value later."""

THREAD_STARTS = ThreadStarts()
