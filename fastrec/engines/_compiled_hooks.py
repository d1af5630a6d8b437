"""Compiled modules that run other compiled code than their own, with the hooks that they have."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn


class Detour:
    """Stands in for the compiled code of a module, which runs it unless a thread wants other code to run.

    A call of the module runs its hooks and then this. It stays while anybody uses it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.own: Callable[..., Any] = module.__dict__["forward"]
        self._module = module
        self._thread = _Thread()
        self._users: set[int] = set()

    @classmethod
    def of(cls, module: nn.Module, user: object) -> Detour:
        """That of a module, which it gets if it has none."""
        found = module.__dict__["forward"]
        if not isinstance(found, cls):
            found = module.__dict__["forward"] = cls(module)
        found._users.add(id(user))
        return found

    def leave(self, user: object) -> None:
        """Somebody needs it no more."""
        self._users.discard(id(user))
        if not self._users and self._module.__dict__.get("forward") is self:
            self._module.__dict__["forward"] = self.own

    def run(self, compiled: Callable[..., Any] | None, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the module, hooks and all, with other compiled code, or its own again inside of such a call."""
        thread = self._thread
        before, thread.wanted = thread.wanted, compiled
        try:
            return call(*args, **kwargs)
        finally:
            thread.wanted = before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self._thread.wanted or self.own)(*args, **kwargs)


class _Thread(threading.local):
    wanted: Callable[..., Any] | None = None
