"""Whether this process is a forked child of the one in which something was opened.

    opened_in = FORKS.count
    ...
    if FORKS.count != opened_in:  # we are in a child: the file, the pool or the session belongs to our parent
        ...

A forked child inherits open recorders, but must not write to what its parent has open. Comparing a number costs less
than ``os.getpid()``, which is a system call, and this is asked once a pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable


class Forks:
    """Counts the forks between the first process and this one."""

    __slots__ = ("_callbacks", "count")

    def __init__(self) -> None:
        self.count = 0
        self._callbacks: list[Callable[[], None]] = []
        if hasattr(os, "register_at_fork"):  # Windows has no fork
            os.register_at_fork(after_in_child=self._count_fork)

    def call_in_child(self, function: Callable[[], None]) -> None:
        """Call a function in every forked child as soon as it exists; it can't be taken back."""
        self._callbacks.append(function)

    def _count_fork(self) -> None:
        self.count += 1
        for function in self._callbacks:
            function()


FORKS = Forks()
"""The only one: processes have no other place to count in."""
