"""What ``torch.compile`` made of a function or a module: what it was made from, how, and how to make another one.

    code = CompiledCode(compiled_part(model), "the model")
    code.compiled_by(backend)(x)  # compiled as the user's is, by a backend of ours

All that is known of ``torch._dynamo`` stands here and in ``wrappers.py``. It is never imported: that takes seconds, and
where nobody has imported it nothing is compiled.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastrec._errors import UnsupportedModelError
from fastrec._torch.wrappers import ORIGINAL_FUNCTION, is_compiled_wrapper, unwrapped

DYNAMO_FOLDER = os.path.join("torch", "_dynamo")
"""Part of the paths of dynamo's own files, in which functions stand that replace others while it traces."""

NUMPY_FUNCTIONS_MODULE = "torch._dynamo.utils"
"""The module of the wrappers by which dynamo computes functions of numpy with torch."""


def compiled_module_class() -> type[nn.Module]:
    """The class of what ``torch.compile`` makes of a module; something has to have been compiled."""
    kind: type[nn.Module] = _dynamo("eval_frame").OptimizedModule
    return kind


def compile_as(function: Callable[..., Any], original: Callable[..., Any]) -> None:
    """Let ``torch.compile`` trace another function wherever it meets this one.

    What is compiled while a recorder is open is then a model as it is without one: nobody watches inside of it.
    """
    function._torchdynamo_inline = original  # type: ignore[attr-defined]


@contextmanager
def not_compiling() -> Iterator[None]:
    """Let ``torch.compiler.is_compiling()`` say no: models ask it, and compute otherwise while they are compiled."""
    compiler: Any = torch.compiler
    before, compiler._is_compiling_flag = compiler._is_compiling_flag, False
    try:
        yield
    finally:
        compiler._is_compiling_flag = before


def compiled_part(root: Any) -> Any:
    """The compiled function that a call of a root runs; None where nothing is compiled."""
    if "torch._dynamo" not in sys.modules:
        return None
    if not isinstance(root, nn.Module):
        return root if ORIGINAL_FUNCTION in getattr(function_of(root), "__dict__", {}) else None
    if is_compiled_wrapper(root):
        forward = root.__dict__.get("_forward") or root.__dict__["forward"]
        return forward.own if isinstance(forward, CompiledSwap) else forward
    if root._compiled_call_impl is not None:
        return root._compiled_call_impl
    forward = root.__dict__.get("forward") or getattr(root, "forward", None)
    return forward if ORIGINAL_FUNCTION in getattr(function_of(forward), "__dict__", {}) else None


def is_compiled(root: Any) -> bool:
    """Whether calling something runs what ``torch.compile`` made."""
    return compiled_part(unwrapped(root) if isinstance(root, nn.Module) else root) is not None or (
        compiled_part(root) is not None
    )


def function_of(callable_: Any) -> Any:
    """The function of a bound method, else the callable itself."""
    return callable_.__func__ if inspect.ismethod(callable_) else callable_


class CompiledCode:
    """A compiled function with the options that it was compiled with."""

    def __init__(self, compiled: Callable[..., Any], name: str) -> None:
        self.compiled = compiled
        self.wrapper = function_of(compiled)
        self.original: Callable[..., Any] = getattr(self.wrapper, ORIGINAL_FUNCTION)
        self.bound_to = getattr(compiled, "__self__", None)
        self._context = variables(self.wrapper)["self"]
        if not callable(getattr(self._context, "callback", None)):
            raise UnsupportedModelError(
                f"{name} has compilation switched off (torch.compile(disable=True) or torch.compiler.disable); record "
                "the model that it was made from"
            )

    @property
    def backend(self) -> Callable[..., Any]:
        """The user's own backend, which holds the mode and the options too."""
        return _dynamo("eval_frame").innermost_backend(self._context.callback)  # type: ignore[no-any-return]

    def compiled_by(self, backend: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, compiled alike but by another backend."""
        context = self._context
        hooks = context._hooks
        options = {
            "nopython": context.fullgraph,
            "dynamic": context._dynamic,
            "error_on_graph_break": getattr(context, "error_on_graph_break", None),
            "guard_filter_fn": getattr(hooks, "guard_filter_fn", None),
            "shapes_spec": getattr(context, "_shapes_spec", None),
            # Else what is compiled here would count against the limit of the user's own code.
            "isolate_recompiles": True,
        }
        optimize = _dynamo("eval_frame")._optimize
        known = inspect.signature(optimize).parameters
        made = sys.modules["torch._dynamo"].optimize(
            backend, **{name: value for name, value in options.items() if name in known}
        )(self.original)
        return self._bound(made)

    def catch(self, caught: Callable[..., Any]) -> None:
        """Let calls of the user's compiled function go to ``caught(own, args, kwargs)``."""
        set_callback = _dynamo("eval_frame").set_eval_frame
        original = self.original

        def catching(*args: Any, **kwargs: Any) -> Any:
            # The user's compile wrapper has switched compiling on for what it calls, which is not this.
            compiling = set_callback(None)

            def own(*args: Any, **kwargs: Any) -> Any:
                before = set_callback(compiling)
                try:
                    return original(*args, **kwargs)
                finally:
                    set_callback(before)

            try:
                return caught(own, args, kwargs)
            finally:
                set_callback(compiling)

        _cell(self.wrapper, "fn").cell_contents = _dynamo("decorators").skip(catching)

    def release(self) -> None:
        """Let calls be as they were."""
        _cell(self.wrapper, "fn").cell_contents = self.original

    def plain(self) -> Callable[..., Any]:
        """The function that was compiled."""
        return self._bound(self.original)

    def _bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self.bound_to is None else function.__get__(self.bound_to)


def _cell(function: Any, name: str) -> Any:
    names = function.__code__.co_freevars
    return function.__closure__[names.index(name)]


def _dynamo(module: str) -> Any:
    return sys.modules[f"torch._dynamo.{module}"]


def variables(function: Any) -> dict[str, Any]:
    """The free variables of a function, with what they hold."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells}


class CompiledSwap:
    """Stands in for the compiled code of a module, which runs it unless a thread wants other code to run.

    A call of the module runs its hooks and then this. It stays while anybody uses it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.own: Callable[..., Any] = module.__dict__["forward"]
        self._module = module
        self._thread = _WantedCode()
        self._users: set[int] = set()

    @classmethod
    def of(cls, module: nn.Module, user: object) -> CompiledSwap:
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


class _WantedCode(threading.local):
    wanted: Callable[..., Any] | None = None
