"""The model compiled, without a recorder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.contestants._watch import Watch
from benchmarks.models import Case

NAME = "compiled"
KEEPS = False


@contextmanager
def watching(case: Case) -> Iterator[Watch]:
    yield Watch(torch.compile(case.model), list, list, list)
