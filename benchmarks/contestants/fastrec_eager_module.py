"""The eager engine with module outputs only, which needs no function mode."""

from __future__ import annotations

from contextlib import AbstractContextManager

from benchmarks.contestants._watch import Watch, recording
from benchmarks.models import Case
from fastrec.predicates import module_type

NAME = "fastrec, keep_module"
KEEPS = True


def watching(case: Case) -> AbstractContextManager[Watch]:
    return recording(case, keep_module=module_type(case.module_type))
