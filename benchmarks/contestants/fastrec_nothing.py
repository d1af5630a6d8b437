"""The eager engine with a predicate that matches nothing: the price of watching."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.contestants._watch import Watch, recording
from benchmarks.models import Case
from fastrec import FastrecWarning

NAME = "fastrec, matching nothing"
KEEPS = False


@contextmanager
def watching(case: Case) -> Iterator[Watch]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastrecWarning)  # it names the globs that matched nothing
        with recording(case, keep_op="nosuchop") as watch:
            yield watch
