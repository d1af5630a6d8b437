"""One pass while it runs."""

from __future__ import annotations

from typing import Any

import msgspec

from fastrec.events.sites import PassInfo


class PassRun(msgspec.Struct):
    """What a pass has kept so far, in event order; times on the clock of ``time.perf_counter``.

    ``rows`` is a list, or a HeldPass once all values of a pass that ends are held as they are.

    ``logged``: the recorder itself made the call, or it is a region, so it may return None. ``error`` is what a tap
    raised, and ``stop`` how many records there were before. ``settled`` holds what questions about the pass said.
    """

    info: PassInfo
    logged: bool
    variants: list[int]
    rows: Any
    times: list[float]
    parents: tuple[str, ...] | None = None
    error: BaseException | None = None
    stop: int = 0
    settled: dict[Any, Any] = msgspec.field(default_factory=dict)

    def fail(self, error: BaseException) -> None:
        """Remember what a tap raised, for the model's own code may swallow it, or go on after it."""
        if self.error is None:
            self.error, self.stop = error, len(self.rows)
