"""The eager engine with a callable that it can't look into, which is asked at every event."""

from __future__ import annotations

from contextlib import AbstractContextManager

from benchmarks.contestants._watch import Watch, recording
from benchmarks.models import Case

NAME = "fastrec, keep_op, opaque lambda"
KEEPS = True


def watching(case: Case) -> AbstractContextManager[Watch]:
    return recording(case, keep_op=lambda ctx: ctx.kind == "op" and ctx.layer_type == case.layer_type)
