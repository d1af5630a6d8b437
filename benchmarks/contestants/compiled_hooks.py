"""Hooks written by hand and compiled with the model: what they keep is computed by compiled code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from benchmarks.contestants import hooks
from benchmarks.contestants._watch import Watch
from benchmarks.models import Case

NAME = "compiled, forward hooks by hand"
KEEPS = True


@contextmanager
def watching(case: Case) -> Iterator[Watch]:
    with hooks.watching(case) as watch:
        yield replace(watch, call=torch.compile(case.model))
