"""Values inside of functorch transforms (vmap, grad, jvp), which come and go in wrappers that no function made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastrec.graph._writes import storage_of

interpreter = torch._C._functorch.peek_interpreter_stack
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_unwrap = torch._C._functorch.get_unwrapped


class Transforms:
    """Follows values into transforms and out of them, by what the wrappers hold."""

    def __init__(self) -> None:
        self.inside: dict[int, int] = {}  # the operation that each memory comes from

    def note(self, value: Tensor, op: int) -> None:
        """An operation returned a value inside of a transform."""
        key = storage_of(_unwrapped(value))
        if key is not None:
            self.inside[key] = op

    def producer(self, value: Tensor, known: Callable[[Tensor], int | None]) -> int | None:
        """The operation that a value comes from which went through a wrapper; None for one that did not."""
        inner = _unwrapped(value)
        found = known(inner) if inner is not value else None
        if found is None and self.inside:
            key = storage_of(inner)
            found = None if key is None else self.inside.get(key)
        return found


def _unwrapped(value: Tensor) -> Tensor:
    while is_wrapped(value):
        value = _unwrap(value)
    return value
