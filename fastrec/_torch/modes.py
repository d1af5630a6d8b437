"""The function modes of a thread, which torch holds in a stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeVar

from torch.overrides import TorchFunctionMode

from fastrec._torch.internals import function_mode_at, function_mode_count, pop_function_mode, push_function_mode

# What entering and leaving a TorchFunctionMode does.
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
    return [function_mode_at(i) for i in range(function_mode_count())]


def set_modes(wanted: list[TorchFunctionMode]) -> None:
    """Let these be the modes of this thread."""
    for _ in range(function_mode_count()):
        pop_function_mode()
    for mode in wanted:
        push_function_mode(mode)
