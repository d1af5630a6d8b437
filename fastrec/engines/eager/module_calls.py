"""Seeing all calls of modules: one wrapper of ``nn.Module.__call__``, in place only while a recorder is open.

    MODULE_CALLS.add(make_wrapper, thread_switch, classes)   # make_wrapper(call) returns what stands before call
    module(x)                                       # runs the wrapper
    MODULE_CALLS.remove(make_wrapper)               # nn.Module.__call__ is what it was

A wrapper of the class sees every module without putting anything on the user's modules, so these can be copied, pickled
and saved while they are recorded. A forward hook costs five times as much per call. The class belongs to the whole
process, which makes this the one piece of state that is shared between recorders: they stand before each other in a
chain, the last one that was opened first.

A class may have a ``__call__`` of its own. One that calls ``super().__call__`` is seen. One that **is** torch's, as in
``__call__ = nn.Module.__call__``, is wrapped as that of ``nn.Module`` is. One that calls a saved reference to torch's
goes around the wrapper, but comes to the module's ``_call_impl``, which leads it back.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
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


_CALLERS = frozenset({__package__, "fastrec.engines.static"})
"""The packages whose code calls a module's ``_call_impl`` after its call was seen."""


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
        self._bound: dict[type[nn.Module], Call] = {}  # classes whose own __call__ is this one of torch's
        self._led_back: set[type[nn.Module]] = set()  # classes whose own __call__ may go around the wrappers
        FORKS.call_in_child(self._forget_recorders)

    def add(
        self, make_wrapper: MakeWrapper, switch: ThreadSwitch, classes: Iterable[type[nn.Module]] = frozenset()
    ) -> None:
        """Put a recorder's wrapper before those that are in place.

        Arguments:
            make_wrapper: makes the wrapper.
            switch: the recorder's own.
            classes: those of its modules; one with a ``__call__`` of its own is wrapped too.
        """
        with self._lock:
            if not self._recorders:
                self._original = self._get_class().__call__
            self._recorders[make_wrapper] = switch
            for cls in classes:
                self._add_class(cls)
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
                if not self._recorders:
                    self._restore_classes()

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
        for cls in self._bound:
            cls.__call__ = self._installed  # type: ignore[method-assign]
        if self is MODULE_CALLS:  # of compiled calls, nothing is seen that a backward pass could run again
            BACKWARDS.install(self.run_unrecorded) if self._recorders else BACKWARDS.remove()

    def _add_class(self, cls: type[nn.Module]) -> None:
        """Wrap the calls of a class that has a ``__call__`` of its own, which may not come to that of nn.Module."""
        owner: Any = next(base for base in cls.__mro__ if "__call__" in vars(base))
        # Torch's own classes call what they should. Where another library has replaced the call of nn.Module, a call
        # that comes from it looks like one that goes around it.
        is_known = owner in self._bound or owner in self._led_back
        if owner.__module__.startswith("torch.") or is_known or self._original is not wrapped_call_impl:
            return
        call = vars(owner)["__call__"]
        if call is wrapped_call_impl or call is call_impl:
            self._bound[owner] = call
        elif owner._call_impl is call_impl:
            self._led_back.add(owner)
            owner._call_impl = self._lead_back()

    def _restore_classes(self) -> None:
        for cls, call in self._bound.items():
            cls.__call__ = call  # type: ignore[method-assign]
        for cls in self._led_back:
            del cls._call_impl
        self._bound.clear()
        self._led_back.clear()

    def _lead_back(self) -> Call:
        """What stands in for ``_call_impl``: it leads a call to the wrappers that has not come from them."""

        def _call_impl(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            if caller.f_code is wrapped_call_impl.__code__ and caller.f_back is not None:
                caller = caller.f_back
            # A class outside of this package may have any name, so by the package and not by the wrappers' code: also
            # the static engine and `pass_on` call modules.
            if caller.f_globals.get("__package__", "") in _CALLERS or self._installed is None:
                return call_impl(module, *args, **kwargs)
            return self._installed(module, *args, **kwargs)

        compile_as(_call_impl, call_impl)
        return _call_impl

    def _forget_recorders(self) -> None:
        # A forked child must not write to its parent's sinks. Its lock may have been held by a thread of the parent.
        self._lock = threading.RLock()
        if self._recorders:
            self._recorders.clear()
            self._install()
            self._restore_classes()


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
