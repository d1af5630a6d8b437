"""The function modes of a thread, which torch holds in a stack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

# What entering and leaving a TorchFunctionMode does.
push: Callable[[TorchFunctionMode], None] = torch._C._push_on_torch_function_stack

pop: Callable[[], object] = torch._C._pop_torch_function_stack

mode_at: Callable[[int], TorchFunctionMode] = torch._C._get_function_stack_at

mode_count: Callable[[], int] = torch._C._len_torch_function_stack

Mode = TypeVar("Mode", bound=TorchFunctionMode)


def unseen_by_dynamo(cls: type[Mode]) -> type[Mode]:
    """Let torch.compile run the methods of a mode as they are, where compiled code runs under it."""
    # What torch.compiler.disable does, which would import torch._dynamo.
    for method in vars(cls).values():
        if isinstance(method, FunctionType):
            method._torchdynamo_disable = True  # type: ignore[attr-defined]
    return cls


@unseen_by_dynamo
class PlainMode(TorchFunctionMode):
    """Changes nothing; modules don't take their fused paths while there is a mode."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def off_stack(mode: TorchFunctionMode) -> Iterator[None]:
    """Take a mode out of this thread's stack of modes inside of the block, from under later ones too."""
    before = current_modes()
    set_modes([other for other in before if other is not mode])
    try:
        yield
    finally:
        set_modes(before)


def current_modes() -> list[TorchFunctionMode]:
    """The modes of this thread, the outermost first."""
    return [mode_at(i) for i in range(mode_count())]


def set_modes(wanted: list[TorchFunctionMode]) -> None:
    """Let these be the modes of this thread."""
    for _ in range(mode_count()):
        pop()
    for mode in wanted:
        push(mode)
