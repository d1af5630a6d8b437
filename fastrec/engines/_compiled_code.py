"""What ``torch.compile`` made of a function or a module: what it was made from, how, and how to make another one.

All that is known of torch's private parts about compiling stands here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from fastrec._errors import UnsupportedModelError
from fastrec.engines._compiled_hooks import Detour
from fastrec.engines._lean_calls import Switch, lean_call, quiet_compiling, variables
from fastrec.engines._modules import is_compiled_wrapper, unwrapped

ORIGINAL = "_torchdynamo_orig_callable"


def compiled_part(root: Any) -> Any:
    """The compiled function that a call of a root runs; None where nothing is compiled."""
    if "torch._dynamo" not in sys.modules:
        return None
    if not isinstance(root, nn.Module):
        return root if ORIGINAL in getattr(function_of(root), "__dict__", {}) else None
    if is_compiled_wrapper(root):
        forward = root.__dict__.get("_forward") or root.__dict__["forward"]
        return forward.own if isinstance(forward, Detour) else forward
    if root._compiled_call_impl is not None:
        return root._compiled_call_impl
    forward = root.__dict__.get("forward") or getattr(root, "forward", None)
    return forward if ORIGINAL in getattr(function_of(forward), "__dict__", {}) else None


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
        self.original: Callable[..., Any] = getattr(self.wrapper, ORIGINAL)
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

    def compiled_by(self, backend: Callable[..., Any], switch: Switch) -> Callable[..., Any]:
        """The same function, compiled alike but by another backend; calls of it are lean while the switch is on."""
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
        quiet_compiling(made)
        return self._bound(lean_call(made, switch))

    def own(self, switch: Switch) -> Callable[..., Any]:
        """The user's compiled function, whose calls are lean while the switch is on."""
        return self._bound(lean_call(self.wrapper, switch))

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
