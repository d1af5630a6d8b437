"""The static engine with a built-in op predicate: each kept op's value is what its module returns."""

from __future__ import annotations

from contextlib import AbstractContextManager

from benchmarks.contestants._watch import Watch, recording
from benchmarks.models import Case

NAME = "fastrec, keep_op, static"
KEEPS = True


def watching(case: Case) -> AbstractContextManager[Watch]:
    return recording(case, keep_op=case.layer_type, engine="static")
