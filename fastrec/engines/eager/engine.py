"""The eager engine: any Python model, any control flow, every op.

It sees modules through the wrapper of ``nn.Module.__call__`` and ops through a function mode, which the outermost
recorded call pushes in the thread that makes it. Not seen: ops inside of compiled code, of TorchScript and of C++
extensions that bypass torch's dispatch of Python functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastrec._errors import FastrecWarning, FusedKernelWarning, SessionError
from fastrec._torch.internals import (
    GLOBAL_HOOKS,
    call_impl,
    functorch_level,
    graph_task_id,
    tracing_state,
    wrapped_call_impl,
)
from fastrec._torch.modes import PlainMode, off_stack
from fastrec._torch.trees import argument_leaves
from fastrec._torch.wrappers import keep_out_of_compiling, runs_compiled
from fastrec.engines._protocol import Listener, OpRunner, PassFilter
from fastrec.engines.eager.mode import OpMode, ThreadState
from fastrec.engines.eager.module_calls import MODULE_CALLS, Call
from fastrec.engines.eager.modules import ModuleRegistry, TrackedModule, is_fused_now
from fastrec.engines.eager.supported import InnerSites, check_roots
from fastrec.engines.eager.tracing import PerformingMode, TracingMode
from fastrec.engines.eager.trie import SourceStep, TrieNode
from fastrec.events.sites import Frame, Site

MAX_TRIE_NODES = 50_000
"""Nodes after which the trie starts afresh: a model that never runs twice alike must not fill the memory."""

_TRANSFORMED = (
    "a recorded model was called inside of a functorch transform (vmap, grad, jvp); its values there are wrappers that "
    "must not escape, so these calls are not recorded"
)

_TRACED = (
    "a recorded model was called by torch.jit.trace, into whose graph a recorder's own work must not get, so these "
    "calls are not recorded"
)


class EagerEngine:
    """Watches every call of the roots, and with ``ops`` every op that runs inside of them.

    Arguments:
        ops: observe ops; without, only modules are seen, at less cost.
        sources: inputs and buffers that are read become events.
        parents: follow which event each value came from.
        performs: the listener is a Performer, which runs the ops itself.
        ahead: tells before a pass runs whether something of it could be kept; the others are not watched.
    """

    is_compiled = False

    def __init__(
        self,
        *,
        ops: bool = True,
        sources: bool = False,
        parents: bool = False,
        performs: bool = False,
        ahead: PassFilter | None = None,
    ) -> None:
        self._ops = ops or sources or parents
        self._sources = sources
        self._parents = parents
        self._performs = performs
        self._ahead = ahead
        self._thread = ThreadState()
        self._root = _root("")
        self._regions: dict[str, TrieNode] = {}
        self._grown = 0
        self._warned: set[str] = set()
        self._called: set[Frame] = set()
        self._kept_out = False
        # Its wrappers of module calls, by what each calls next: one that held itself would keep all of this alive.
        self._made: dict[Call | None, Call] = {}

    def open(self, roots: Mapping[str, nn.Module], listener: Listener) -> None:
        """Begin to watch the roots, in every thread."""
        check_roots(roots)
        self._table = ModuleRegistry(roots)
        self._inside = InnerSites(self._table, listener)
        self._listener = listener
        self._kept_out = keep_out_of_compiling()
        MODULE_CALLS.add(self._make_layer, self._thread)

    def close(self) -> None:
        """Stop watching; passes that still run in other threads are no longer seen."""
        MODULE_CALLS.remove(self._make_layer)
        # The trie may be large, and a recorder outlives its block for as long as somebody reads from it.
        self._thread.spare = None
        self._made.clear()
        self._root = _root("")
        self._regions.clear()

    def frames(self) -> list[Frame]:
        """The modules that it knows, for messages."""
        return self._table.frames()

    def called(self) -> set[str]:
        """The addresses of the modules that were called, for messages."""
        return {a for f in self._called for a in (f.module_address, *f.aliases)}

    def unseen(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function in this thread of which nothing is recorded, by other recorders neither."""
        call = partial(function, *args)
        for thread in MODULE_CALLS.threads():
            call = partial(thread.mute, call, (), {})
        return call()

    def enter_region(self, name: str) -> OpMode | None:
        """Make what this thread runs from now on one pass; None where the listener does not record it."""
        if self._thread.mode is not None:
            raise SessionError(
                "a region can't begin inside of a pass or of another region of the same recorder and thread; "
                "end the one before, or open the region around the outermost call"
            )
        root = self._regions.get(name)
        if root is None:
            root = self._regions[name] = _root(f":{name}")
        run = self._listener.begin(name)
        if run is None:
            return None
        mode = self._begin(run, root)
        if self._ops:
            mode.watch()
        return mode

    def leave_region(self, token: OpMode, error: BaseException | None) -> bool:
        """End the region's pass; whether the listener takes the exception as its own."""
        if self._ops:
            token.unwatch()
        return self._end(token, error)

    # In one piece, because each function more costs every module call.
    def _make_layer(self, call: Call | None) -> Call:  # noqa: C901
        """The wrapper of module calls; ``call`` is what comes next, None the module itself."""
        known_modules = self._table.known
        thread = self._thread
        outermost, enter, run_apart, call_other = self._outermost, self._enter, self._run_apart, self._call_other
        made, watches = self._made, self._ops
        hooks, pre_hooks, backward_hooks, backward_pre_hooks = GLOBAL_HOOKS

        def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: C901
            mode = thread.mode
            if mode is None:
                called = known_modules.get(id(module))
                layer = made.get(call)
                if called is not None and layer is not None and not thread.muted:
                    return outermost(layer, call, called, args, kwargs)
                return _plain(call, module, args, kwargs)
            # Where ops are watched, what runs autograd is seen, and nothing of it is watched.
            if not watches and graph_task_id() != -1:
                return _plain(call, module, args, kwargs)
            entered = mode.node.entered
            if entered.module is not module:
                found = enter(mode, module)
                if found is None:
                    return call_other(mode, call, module, args, kwargs)
                entered = found
            mode.node = entered
            if entered.spread:
                mode.feed_arguments(entered, args, kwargs)
            # One dict, because each attribute of a module is looked up in its class first.
            state = module.__dict__
            known: Any = entered.known
            unhooked = not (
                state["_forward_hooks"]
                or state["_forward_pre_hooks"]
                or state["_backward_hooks"]
                or state["_backward_pre_hooks"]
                or hooks
                or pre_hooks
                or backward_hooks
                or backward_pre_hooks
            )
            straight = None
            turned = False
            if entered.quiet:
                # What a hook does, or a forward that the user put in place, has to be seen.
                if unhooked and "forward" not in state and module.__class__ is known.kind:
                    if mode.on:
                        turned = mode.rest()
                        if turned:
                            straight = entered.straight
                    else:
                        straight = entered.straight
                else:
                    turned = watch_again(mode)
            elif watches and not mode.on:
                turned = watch_again(mode)
            try:
                if entered.apart or state.get("_compiled_call_impl") is not None:
                    out = run_apart(mode, entered, call, module, args, kwargs)
                elif call is not None:
                    out = call(module, *args, **kwargs)
                elif unhooked and known.calls_forward and tracing_state() is None:
                    # What torch does with a module without hooks, less a Python frame.
                    out = module.forward(*args, **kwargs)
                else:
                    out = module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
            except BaseException:
                if turned:
                    turn_back(mode)
                mode.raised(entered)
                raise
            if turned:
                turn_back(mode)
            if straight is not None:
                mode.arrive(straight, out, args)
            left = mode.node.left or mode.leave(entered)
            mode.node = left
            if left.spread:
                mode.feed_value(left, out)
            return out

        self._made[call] = __call__
        return __call__

    def _outermost(
        self, layer: Call, call: Call | None, known: TrackedModule, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call into a root from outside: a pass."""
        if graph_task_id() != -1:  # autograd runs a part of an earlier forward pass again
            return _plain(call, known.module, args, kwargs)
        run = self._listener.begin(known.address) if _is_ordinary(self._warn) else None
        if run is None:
            return self._thread.mute(_plain, (call, known.module, args, kwargs), {})
        if self._ahead is not None and self._skips(run, self._ahead):
            return self._unwatched(run, call, known, args, kwargs)
        mode = self._begin(run, self._root)
        error: BaseException | None = None
        out = None
        try:
            if self._sources:
                self._feed_sources(mode, known, args, kwargs)
            if self._ops:
                mode.watch()
                try:
                    out = layer(known.module, *args, **kwargs)
                finally:
                    mode.unwatch()
            else:
                out = layer(known.module, *args, **kwargs)
        except BaseException as raised:
            error = raised
            if not self._end(mode, error):
                raise
        else:
            self._end(mode, None)
        return out

    def _skips(self, run: Any, ahead: PassFilter) -> bool:
        """Whether a pass that begins need not be watched."""
        return not ahead(run)

    def _unwatched(
        self, run: Any, call: Call | None, known: TrackedModule, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A pass of which nothing can be kept."""
        try:
            out = self._thread.mute(_plain, (call, known.module, args, kwargs), {})
        except BaseException as error:
            if not self._listener.end(run, error):
                raise
            return None
        self._listener.end(run, None)
        return out

    def _begin(self, run: Any, root: TrieNode) -> OpMode:
        thread = self._thread
        if not self._kept_out:
            self._kept_out = keep_out_of_compiling()
        mode = thread.spare
        if mode is None:
            mode = self._make_mode()
        thread.spare = None
        thread.mode = mode
        if isinstance(mode, TracingMode) and self._sources:
            mode.watch_buffers(self._buffers())
        mode.begin(run, root)
        return mode

    def _make_mode(self) -> OpMode:
        if self._performs:
            return PerformingMode(cast(OpRunner, self._listener), self._thread)
        if self._sources or self._parents:
            return TracingMode(self._listener, self._thread, parents=self._parents)
        return OpMode(self._listener, self._thread, may_rest=self._ops)

    def _end(self, mode: OpMode, error: BaseException | None) -> bool:
        thread = self._thread
        thread.mode = None
        thread.spare = mode
        run, mode.run = mode.run, None
        if mode.grown or self._table.moved:
            self._grown += mode.grown
            mode.grown = 0
            # A module that moved would be taken for what it was on the paths that are known.
            if self._grown > MAX_TRIE_NODES or self._table.moved:
                self._grown, self._table.moved = 0, False
                self._root = _root("")
                self._regions.clear()
        return self._listener.end(run, error)

    def _enter(self, mode: OpMode, module: nn.Module) -> TrieNode | None:
        """The node of a module that another one than last time enters here; None for one that is not the roots'."""
        known = self._table.known.get(id(module)) or self._table.find_late(module)
        if known is None:
            return None
        node = mode.node
        # How a module with a fused path runs can change from call to call, so it is looked up every time.
        step: Any = (known, is_fused_now(module)) if known.may_fuse else known
        entered = node.edges.get(step) or self._grow(mode, known, step)
        if not known.may_fuse and entered is not None:
            if entered.module is not None and entered.module is not module and known.runs_one_op:
                entered.quiet, entered.straight = False, None  # another one of its class may run more ops
            entered.module = module
            node.entered = entered
        return entered

    def _grow(self, mode: OpMode, known: TrackedModule, step: Any) -> TrieNode | None:
        fused = step is not known and step[1]
        scripted = isinstance(known.module, torch.jit.ScriptModule)
        compiled = scripted or runs_compiled(known.module)
        entered = mode.enter(known, step, sealed=fused or compiled)
        self._called.add(known.frame)
        if entered is not None:
            entered.quiet = known.only_calls and mode.may_rest
        if entered is not None and (fused or compiled):
            inside = self._inside.is_kept(known, entered.site.frames)
            entered.hidden = compiled or not inside
            entered.apart = entered.hidden or not self._ops
            if inside and compiled:
                self._warn(
                    known.address,
                    f"{known.name!r} is {'a ScriptModule' if scripted else 'compiled'} and runs inside of an eager "
                    "model: the ops inside of it are not seen",
                )
            elif inside:
                self._warn(
                    known.address,
                    f"{known.name!r} ({known.frame.module_type}) has a kept site inside, so it runs without its fused "
                    "kernel while it is recorded; its output may differ in the last bits",
                    FusedKernelWarning,
                )
        return entered

    def _run_apart(
        self, mode: OpMode, entered: TrieNode, call: Call | None, module: nn.Module, args: Any, kwargs: Any
    ) -> Any:
        """Run a module that is no ordinary one."""
        if entered.hidden or module._compiled_call_impl is not None:
            out = self._hidden(mode, call, module, args, kwargs)
            mode.returned_hidden(entered, out)
            return out
        with PlainMode():  # something inside is kept, so the fused path must not be taken though no ops are observed
            return _plain(call, module, args, kwargs)

    def _call_other(self, mode: OpMode, call: Call | None, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module that belongs to no root inside of a pass; its ops are those of the module that calls it."""
        if runs_compiled(module):
            return self._hidden(mode, call, module, args, kwargs)
        turned = self._ops and watch_again(mode)
        try:
            return _plain(call, module, args, kwargs)
        finally:
            if turned:
                turn_back(mode)

    def _hidden(self, mode: OpMode, call: Call | None, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module as one event: without the mode, which would change how it computes."""
        with off_stack(mode):
            return self._thread.mute(_plain, (call, module, args, kwargs), {})

    def _feed_sources(self, mode: OpMode, known: TrackedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for path, value in argument_leaves(args, kwargs):
            mode.source(SourceStep("input", path), known.input_prefix + path, path.strip(".[]"), value)

    def _buffers(self) -> dict[int, tuple[Tensor, str]]:
        found: dict[int, tuple[Tensor, str]] = {}
        for known in self._table.known.values():
            for name, buffer in known.module._buffers.items():
                if buffer is not None:
                    found[id(buffer)] = (buffer, f"{known.address}.{name}" if known.address else name)
        return found

    def _warn(self, key: str, message: str, category: type[FastrecWarning] = FastrecWarning) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, category, stacklevel=4)


def _is_ordinary(warn: Callable[[str, str], None]) -> bool:
    """Whether a call that begins can be a pass."""
    if functorch_level() is not None:
        warn("transform", _TRANSFORMED)
        return False
    if tracing_state() is not None:
        warn("trace", _TRACED)
        return False
    return True


def watch_again(mode: OpMode) -> bool:
    """Let a mode that rests watch again; whether it did rest."""
    if mode.on:
        return False
    mode.watch()
    return True


def turn_back(mode: OpMode) -> None:
    """Let a mode that was turned on or off for one module be as it was before."""
    if mode.on:
        mode.unwatch()
    else:
        mode.watch()


def _root(name: str) -> TrieNode:
    return TrieNode(Site(name, "op", "", ""), None, None, None)


def _plain(call: Call | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if call is not None:
        return call(module, *args, **kwargs)
    state = module.__dict__
    if (
        module.__class__._call_impl is not call_impl
        or state.get("_forward_hooks", True)  # torch says what is wrong with a module that has none
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or any(GLOBAL_HOOKS)
        or state.get("_compiled_call_impl") is not None
        or tracing_state() is not None
    ):
        return wrapped_call_impl(module, *args, **kwargs)
    return module.forward(*args, **kwargs)
