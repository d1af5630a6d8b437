"""The one wrapper of a class's ``__call__``, in place only while a recorder is open."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from fastrec._torch.dynamo import compile_as, compiled_module_class
from fastrec._torch.internals import wrapped_call_impl

Call = Callable[..., Any]

Layer = Callable[[Call | None], Call]
"""Makes the wrapper of one recorder around what is called next; None stands for the module's own call."""


class Muting(Protocol):
    """What a recorder knows of the current thread."""

    def mute(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function of which nothing is recorded."""


class ModuleCalls:
    """Who watches the calls of a class of modules in this process; the last one to come is the outermost.

    The patch is on a class that the whole process shares, so this is the one thing here that is process-wide.
    """

    def __init__(self, patched: Callable[[], type[nn.Module]]) -> None:
        self._patched = patched
        self.shared: dict[int, list[Any]] = {}  # who records a compiled function, by its identity, in order of coming
        self._lock = threading.RLock()
        self._layers: dict[Layer, Muting] = {}
        self._original: Call | None = None
        self._fork_watched = False

    def add(self, layer: Layer, thread: Muting) -> None:
        """Wrap module calls in one more layer, that can be told to record nothing in a thread."""
        with self._lock:
            if not self._layers:
                self._original = self._patched().__call__
                if not self._fork_watched:
                    os.register_at_fork(after_in_child=self._clear)
                    self._fork_watched = True
            self._layers[layer] = thread
            self._install()

    def remove(self, layer: Layer) -> None:
        """Take a layer away again; the last one leaves the class as it was."""
        with self._lock:
            if layer in self._layers:
                del self._layers[layer]
                self._install()

    def original(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call a module as if nobody watched."""
        assert self._original is not None
        return self._original(module, *args, **kwargs)

    def threads(self) -> list[Muting]:
        """What all recorders know of the current thread."""
        with self._lock:
            return list(self._layers.values())

    def _install(self) -> None:
        original = self._original
        assert original is not None
        # Torch's own __call__ only chooses between the module's plain and its compiled call: a layer does that itself
        # and saves a Python frame per module. Somebody else's patch is called like any other layer.
        call = None if original is wrapped_call_impl else original
        for layer in self._layers:
            call = layer(call)
            compile_as(call, original)
        self._patched().__call__ = call if self._layers and call else original  # type: ignore[method-assign]

    def _clear(self) -> None:
        # A forked child shares no sink with its parent, so nothing may be recorded there.
        self._lock = threading.RLock()
        if self._layers:
            self._layers.clear()
            self._install()


MODULE_CALLS = ModuleCalls(lambda: nn.Module)

COMPILED_CALLS = ModuleCalls(compiled_module_class)
