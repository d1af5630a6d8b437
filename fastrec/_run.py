"""One pass while it runs."""

from __future__ import annotations

from typing import Any

import msgspec

from fastrec._sites import PassInfo


class PassRun(msgspec.Struct):
    """What a pass has kept so far, in event order; times on the clock of ``time.perf_counter``.

    ``logged``: the recorder itself made the call, or it is a region, so it may return None.
    """

    info: PassInfo
    logged: bool
    variants: list[int]
    rows: list[Any]
    times: list[float]
    parents: tuple[str, ...] | None = None
