"""The function modes of a thread, which torch keeps in a stack; the last one that was pushed is called first.

    with off_stack(mode):
        module(x)  # computes as if there were no such mode

``with mode:`` pushes and pops a mode too. It costs more, and can only take away the last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeVar

from torch.overrides import TorchFunctionMode

from fastrec._torch.internals import function_mode_at, function_mode_count, pop_function_mode, push_function_mode


@contextmanager
def off_stack(mode: TorchFunctionMode) -> Iterator[None]:
    """Take a mode out of this thread's stack inside of the block, even from below later ones."""
    modes = current_modes()
    set_modes([other for other in modes if other is not mode])
    try:
        yield
    finally:
        set_modes(modes)


def current_modes() -> list[TorchFunctionMode]:
    """The modes of this thread, the first that was pushed first."""
    return [function_mode_at(i) for i in range(function_mode_count())]


def set_modes(modes: list[TorchFunctionMode]) -> None:
    """Make these the modes of this thread."""
    for _ in range(function_mode_count()):
        pop_function_mode()
    for mode in modes:
        push_function_mode(mode)


Mode = TypeVar("Mode", bound=TorchFunctionMode)


def unseen_by_dynamo(cls: type[Mode]) -> type[Mode]:
    """Have ``torch.compile`` run the methods of a mode as they are, where compiled code is called under it.

    Otherwise dynamo traces ``__torch_function__`` into the user's graphs and guards on the state of the mode, which
    changes with every op: the user's code would hit the recompile limit. This sets what ``torch.compiler.disable``
    sets, without its import of ``torch._dynamo``, which takes seconds.
    """
    for method in vars(cls).values():
        if isinstance(method, FunctionType):
            method._torchdynamo_disable = True  # type: ignore[attr-defined]
    return cls


@unseen_by_dynamo
class PlainMode(TorchFunctionMode):
    """Changes nothing, but is there: modules do not take their fused paths under a function mode."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))
