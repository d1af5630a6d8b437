"""Whether this process is a forked child of the one in which something was opened."""

from __future__ import annotations

import os


class Forks:
    """How often this process was forked on the way from the first one; asking the system each time costs a call."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.count += 1


FORKS = Forks()
