"""The model alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.contestants._watch import Watch
from benchmarks.models import Case

NAME = "bare forward pass"
KEEPS = False


@contextmanager
def watching(case: Case) -> Iterator[Watch]:
    yield Watch(case.model, list, list, list)
