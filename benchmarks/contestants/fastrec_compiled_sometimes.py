"""The compiled engine with a predicate that keeps one pass in a hundred."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from benchmarks.contestants._watch import Watch, recording
from benchmarks.models import Case
from fastrec.predicates import every, op

NAME = "fastrec, 1 pass in 100, compiled"
KEEPS = True


def watching(case: Case) -> AbstractContextManager[Watch]:
    compiled = replace(case, model=torch.compile(case.model))
    return recording(compiled, keep_op=op(case.layer_type) & every(100))
