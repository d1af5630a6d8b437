"""The compiled engine with a built-in op predicate."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from benchmarks.contestants._watch import Watch, recording
from benchmarks.models import Case

NAME = "fastrec, keep_op, compiled"
KEEPS = True


def watching(case: Case) -> AbstractContextManager[Watch]:
    return recording(replace(case, model=torch.compile(case.model)), keep_op=case.layer_type)
