"""One pass while it runs."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from fastrec._sites import PassInfo


class PassRun:
    """What a pass has kept so far, in event order."""

    __slots__ = ("info", "logged", "parents", "rows", "started", "times", "variants")

    def __init__(self, info: PassInfo, *, logged: bool) -> None:
        self.info = info
        self.logged = logged  # the recorder itself made the call, or it is a region: it may return None
        self.parents: tuple[str, ...] | None = None
        self.variants: list[int] = []
        self.rows: list[Any] = []
        self.times: list[float] = []
        self.started = perf_counter()
