"""The function modes of a thread, which torch keeps in a stack; the last one that was pushed is called first.

    with off_stack(mode):
        module(x)  # computes as if there were no such mode

``with mode:`` pushes and pops a mode too. It costs more, and can only take away the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from fastrec._torch.internals import function_mode_at, function_mode_count, pop_function_mode, push_function_mode
from fastrec._torch.versions import HIDES_BACKWARD_FROM_MODES


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


class RecorderMode(TorchFunctionMode):
    """A mode of fastrec's own that sees the ops of a pass."""


class Backwards:
    """Keeps what autograd runs again from being recorded, where ``torch.autograd.backward`` is hidden from modes.

    A mode that sees the call of a function that runs a backward pass can go out of the way. In versions of torch in
    which it can't see it, the function that all of them call is replaced while a recorder is open.
    """

    def __init__(self) -> None:
        self._original: Callable[..., Any] | None = None

    def install(self, run_unrecorded: Callable[[Callable[[], Any]], Any]) -> None:
        """Have backward passes run by ``run_unrecorded``, where recorders see the ops of this thread."""
        if not HIDES_BACKWARD_FROM_MODES or self._original is not None:
            return
        autograd: Any = torch.autograd
        original = self._original = autograd._engine_run_backward

        def run_backward(*args: Any, **kwargs: Any) -> Any:
            modes = current_modes()
            others = [mode for mode in modes if not isinstance(mode, RecorderMode)]
            if len(others) == len(modes):
                return original(*args, **kwargs)
            set_modes(others)
            try:
                return run_unrecorded(partial(original, *args, **kwargs))
            finally:
                set_modes(modes)

        autograd._engine_run_backward = run_backward

    def remove(self) -> None:
        """Put torch's own function back."""
        if self._original is not None:
            autograd: Any = torch.autograd
            autograd._engine_run_backward, self._original = self._original, None


BACKWARDS = Backwards()
"""The only one, because torch has one such function."""


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
