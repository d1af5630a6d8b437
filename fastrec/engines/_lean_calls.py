"""Calls of compiled code without what torch does at each of them for cases that are not at hand.

For a small model, what torch's own wrapper looks after (tracing, exports, stances, what a failing graph leaves behind)
takes longer than keeping some values. Where none of that can be, compiled code is entered directly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import fx

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
