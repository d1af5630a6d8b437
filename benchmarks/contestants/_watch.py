"""What a contestant gives the contest while it watches a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.models import Case
from fastrec import Recorder


@dataclass(frozen=True)
class Watch:
    """How to ``call`` the model; ``kept`` and ``pop`` give what was kept so far, ``pop`` forgets it.

    ``read`` makes tensors of what they give.
    """

    call: Callable[[Tensor], Any]
    kept: Callable[[], Any]
    pop: Callable[[], Any]
    read: Callable[[Any], list[Tensor]]


@contextmanager
def recording(case: Case, **options: Any) -> Iterator[Watch]:
    """The watch of a fastrec session."""
    with Recorder(case.model, **options) as rec:
        yield Watch(case.model, lambda: rec.recording, rec.pop, lambda kept: [record.activation for record in kept])
