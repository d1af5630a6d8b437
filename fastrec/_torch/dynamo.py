"""What ``torch.compile`` made of a function or a module: what it was made from, how, and how to make another one.

All that is known of torch's private parts about compiling stands here.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn

from fastrec._errors import UnsupportedModelError
from fastrec.engines.eager.modules import is_compiled_wrapper, unwrapped

ORIGINAL = "_torchdynamo_orig_callable"


def compiled_part(root: Any) -> Any:
    """The compiled function that a call of a root runs; None where nothing is compiled."""
    if "torch._dynamo" not in sys.modules:
        return None
    if not isinstance(root, nn.Module):
        return root if ORIGINAL in getattr(function_of(root), "__dict__", {}) else None
    if is_compiled_wrapper(root):
        forward = root.__dict__.get("_forward") or root.__dict__["forward"]
        return forward.own if isinstance(forward, CompiledSwap) else forward
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


_KNOWN = ("callback", "fn", "is_fx_symbolic_tracing", "is_jit_tracing", "self")
"""The free variables of the wrapper that is known here; another torch may have another one."""

_is_jit_tracing = torch._C._is_tracing

_modes = torch._C._len_torch_dispatch_stack


class Switch:
    """Whether calls may be lean: only where no graph changes a state of torch that a failing call would leave so."""

    __slots__ = ("on",)

    def __init__(self) -> None:
        self.on = False


def leaves_no_state(graph: fx.Graph) -> bool:
    """Whether all that a graph runs yields values: entering autocast or a level of vmap does not."""
    return all("example_value" in node.meta for node in graph.nodes if node.op == "call_function")


def quiet_compiling(wrapper: Any) -> None:
    """Leave marks for the profiler out of what a wrapper compiles from now on; each run would make them anew."""
    callback = variables(wrapper).get("callback")
    config = sys.modules["torch._dynamo.config"]
    if getattr(config, "record_runtime_overhead", None) is None or not callable(callback):
        return

    class Quietly(type(callback)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with config.patch(record_runtime_overhead=False):
                return super().__call__(*args, **kwargs)

    callback.__class__ = Quietly


def lean_call(wrapper: FunctionType, switch: Switch) -> Callable[..., Any]:
    """Calls what a compile wrapper does, directly while the switch is on and nothing else is to be looked after.

    The wrapper itself, where it does more than is known here.
    """
    frames: Any = sys.modules["torch._dynamo.eval_frame"]
    stance = frames._stance if wrapper.__code__.co_freevars == _KNOWN else None
    if stance is None or stance.stance != "default" or stance.backend is not None or stance.skip_guard_eval_unsafe:
        return wrapper
    held = variables(wrapper)
    context, callback, function = held["self"], held["callback"], held["fn"]
    if (
        context.fullgraph
        or context.export
        or context.error_on_graph_break is not None
        or len(context.enter_exit_hooks) > 1  # the one counts the calls
    ):
        return wrapper
    isolated = context._isolate_recompiles_id
    set_callback, isolate = frames.set_eval_frame, frames.set_eval_frame_isolate_recompiles_id
    symbolic: Any = sys.modules["torch.fx._symbolic_trace"]
    calls: Any = sys.modules["torch._dynamo.mutation_guard"].GenerationTracker

    def call(*args: Any, **kwargs: Any) -> Any:
        if (
            not switch.on
            or frames._stance is not stance
            or _modes()  # torch compiles or exports what is called
            or _is_jit_tracing()
            or symbolic._is_fx_tracing_flag
        ):
            return wrapper(*args, **kwargs)
        calls.generation += 1  # by which CUDA graphs know whose outputs they may overwrite
        isolated_before = isolate(isolated)
        before = set_callback(callback)
        try:
            return function(*args, **kwargs)
        finally:
            set_callback(before)
            isolate(isolated_before)

    return call


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
