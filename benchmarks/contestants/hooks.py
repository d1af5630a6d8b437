"""What one writes without a library: a forward hook on each module whose output is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from benchmarks.contestants._watch import Watch
from benchmarks.models import Case

NAME = "forward hooks by hand"
KEEPS = True


@contextmanager
def watching(case: Case) -> Iterator[Watch]:
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        kept.append(output.detach().clone())

    def pop() -> list[Tensor]:
        taken = kept.copy()
        kept.clear()
        return taken

    wanted = [module for module in case.model.modules() if type(module).__name__ == case.module_type]
    handles = [module.register_forward_hook(keep) for module in wanted]
    try:
        yield Watch(case.model, kept.copy, pop, list)
    finally:
        for handle in handles:
            handle.remove()
