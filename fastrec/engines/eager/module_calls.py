"""Seeing all calls of modules: one wrapper of ``nn.Module.__call__``, in place only while a recorder is open.

    MODULE_CALLS.add(make_wrapper, thread_switch)   # make_wrapper(next_call) returns what stands before next_call
    module(x)                                       # runs the wrapper
    MODULE_CALLS.remove(make_wrapper)               # nn.Module.__call__ is what it was

A wrapper of the class sees every module without putting anything on the user's modules, so these can be copied, pickled
and saved while they are recorded. A forward hook costs five times as much per call. The class belongs to the whole
process, which makes this the one piece of state that is shared between recorders: they stand before each other in a
chain, the last one that was opened first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from torch import nn

from fastrec._torch.dynamo import compile_as, compiled_module_class
from fastrec._torch.internals import GLOBAL_HOOKS, call_impl, tracing_state, wrapped_call_impl
from fastrec._torch.modes import BACKWARDS
from fastrec._torch.process import FORKS

ResultT = TypeVar("ResultT")

Call = Callable[..., Any]

MakeWrapper = Callable[[Call | None], Call]
"""Makes the wrapper of one recorder around the call that comes next; None stands for the module's own call."""


class ThreadSwitch(Protocol):
    """Where a recorder can be told to record nothing in the current thread."""

    def run_unrecorded(self, function: Callable[..., ResultT], /, *args: Any, **kwargs: Any) -> ResultT:
        """Run a function without recording anything that it calls."""


class ModuleCalls:
    """The recorders that wrap the calls of one class of modules."""

    def __init__(self, get_class: Callable[[], type[nn.Module]]) -> None:
        self._get_class = get_class
        self._lock = threading.RLock()
        self._recorders: dict[MakeWrapper, ThreadSwitch] = {}
        self._original: Call | None = None
        self._installed: Call | None = None
        FORKS.call_in_child(self._forget_recorders)

    def add(self, make_wrapper: MakeWrapper, switch: ThreadSwitch) -> None:
        """Put a recorder's wrapper before those that are in place."""
        with self._lock:
            if not self._recorders:
                self._original = self._get_class().__call__
            self._recorders[make_wrapper] = switch
            self._install()

    def remove(self, make_wrapper: MakeWrapper) -> None:
        """Take a recorder's wrapper away; the last one leaves the class as it was."""
        with self._lock:
            if make_wrapper in self._recorders:
                del self._recorders[make_wrapper]
                # What another library has put before our wrappers meanwhile is not ours to take away. It calls a
                # wrapper that passes on; the last one, which it puts back when it leaves, stays then.
                if self._recorders or self._get_class().__call__ is self._installed:
                    self._install()

    def original(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call a module as if no recorder were open."""
        assert self._original is not None
        return self._original(module, *args, **kwargs)

    def switches(self) -> list[ThreadSwitch]:
        """Those of all open recorders."""
        with self._lock:
            return list(self._recorders.values())

    def run_unrecorded(self, function: Callable[..., ResultT], *args: object) -> ResultT:
        """Run a function in this thread without recording anything that it calls, by any of these recorders."""
        call = partial(function, *args)
        for switch in self.switches():
            call = partial(switch.run_unrecorded, call)
        return call()

    def _install(self) -> None:
        original = self._original
        assert original is not None
        # Torch's own __call__ only chooses between the plain and the compiled call of a module. A wrapper does that
        # itself, which saves a Python frame per call. Somebody else's __call__ is called as the next wrapper would be.
        call = None if original is wrapped_call_impl else original
        for make_wrapper in self._recorders:
            call = make_wrapper(call)
            compile_as(call, original)
        self._installed = call if self._recorders and call else original
        self._get_class().__call__ = self._installed  # type: ignore[method-assign]
        if self is MODULE_CALLS:  # of compiled calls, nothing is seen that a backward pass could run again
            BACKWARDS.install(self.run_unrecorded) if self._recorders else BACKWARDS.remove()

    def _forget_recorders(self) -> None:
        # A forked child must not write to its parent's sinks. Its lock may have been held by a thread of the parent.
        self._lock = threading.RLock()
        if self._recorders:
            self._recorders.clear()
            self._install()


def pass_on(call: Call | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a module that this recorder does not watch: by the next wrapper, or as torch would."""
    if call is not None:
        return call(module, *args, **kwargs)
    # What wrapped_call_impl and call_impl do for a module without hooks, in one frame instead of two. It makes up for
    # the wrapper itself: all modules of the process come through here while a recorder is open.
    state = module.__dict__
    if (
        module.__class__._call_impl is not call_impl
        # A module whose __init__ was never called has no hooks; torch says what is wrong with it.
        or state.get("_forward_hooks", True)
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or any(GLOBAL_HOOKS)
        or state.get("_compiled_call_impl") is not None
        or tracing_state() is not None
    ):
        return wrapped_call_impl(module, *args, **kwargs)
    return module.forward(*args, **kwargs)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module runs hooks.

    The wrappers of module calls ask the same in place, because a call of this function would cost as much as the rest
    of a wrapper.
    """
    state = module.__dict__
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or any(GLOBAL_HOOKS)
    )


MODULE_CALLS = ModuleCalls(lambda: nn.Module)

COMPILED_CALLS = ModuleCalls(compiled_module_class)
"""Calls of what ``torch.compile`` made of a module: a call of it is a pass of the compiled engine."""
