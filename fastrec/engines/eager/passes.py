"""Passes that are run with every module and every op in view: the machinery of the eager engine.

    passes = EagerPasses(registry, special, listener, watch, make_mode)
    MODULE_CALLS.add(passes.wrapper, passes.thread, registry.classes())
    model(x)     # wrapper: the outermost call of a tracked module begins a pass; the calls inside walk the trie

The static engine and the reference tracer of the compiled engine run eager passes too, each at its own times, so they
hold one of these beside what is their own.

A pass belongs to the thread that makes the call. Its state is an ``OpMode``: the node of the trie that it has reached,
and, while it is on the stack of function modes, what torch calls for each op.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastrec._errors import SessionError, UnsupportedModelError
from fastrec._torch.dynamo import keep_out_of_compiling, runs_compiled
from fastrec._torch.internals import GLOBAL_HOOKS, functorch_level, graph_task_id, tracing_state
from fastrec._torch.modes import PlainMode, off_stack
from fastrec._torch.trees import argument_leaves
from fastrec._torch.versions import prepare_for_function_modes
from fastrec.engines._protocol import Listener, PassFilter, WatchOptions
from fastrec.engines.eager.mode import OpMode, ThreadState
from fastrec.engines.eager.module_calls import Call, pass_on
from fastrec.engines.eager.modules import ModuleRegistry, TrackedModule, may_fuse_now
from fastrec.engines.eager.special import SpecialModules, WarnOnce, is_compiled_or_scripted
from fastrec.engines.eager.tracing import TracingMode
from fastrec.engines.eager.trie import SourceStep, Trie, TrieNode
from fastrec.events.sites import Frame

MAX_TRIE_NODES = 50_000
"""Nodes after which the trie starts afresh: a model that never runs twice alike must not fill the memory."""

_TRANSFORMED = (
    "a recorded model was called inside of a functorch transform (vmap, grad, jvp); its values there are wrappers that "
    "must not escape, so these calls are not recorded"
)

_TRACED = (
    "a recorded model was called by torch.jit.trace, whose graph must not contain a recorder's own work, so these "
    "calls are not recorded"
)

_IN_ANOTHER_THREAD = (
    "a recorded pass gave work to another thread, by {}: the ops that run there are not recorded, and a module that is "
    "called there is a pass of its own. Let the model compute in the thread that calls it while it is recorded, or "
    "open a rec.region() in the other thread"
)


class EagerPasses:
    """Begins and ends passes, and follows what runs in them.

    Arguments:
        registry: the modules of the roots.
        special: decides how modules run that can't be called as most are.
        listener: who is told.
        watch: what is an event.
        make_mode: makes the state of a pass, for the threads of this object.
        pass_filter: whether something of a pass that begins could be kept; the others are not watched.
    """

    def __init__(
        self,
        registry: ModuleRegistry,
        special: SpecialModules,
        listener: Listener[Any],
        watch: WatchOptions,
        make_mode: Callable[[ThreadState], OpMode],
        pass_filter: PassFilter[Any] | None = None,
    ) -> None:
        self.registry = registry
        self.thread = ThreadState()
        self.trie = Trie()
        self._special = special
        self._listener = listener
        self._sees_ops, self._sources = watch.sees_ops, watch.sources
        self._make_mode = make_mode
        self._pass_filter = pass_filter
        self._warn = WarnOnce(stacklevel=5)
        self._warn_of_thread = WarnOnce(stacklevel=4)
        self._called: set[Frame] = set()
        if watch.sees_ops:
            prepare_for_function_modes()
        self._is_known_to_dynamo = keep_out_of_compiling()
        # The wrappers by what each calls next. A wrapper that held itself would be a reference cycle, which keeps the
        # engine and its trie in memory until the garbage collector comes by.
        self._wrappers: dict[Call | None, Call] = {}

    def close(self) -> None:
        """Let go of the trie, which may be large: a recorder outlives its block while somebody reads from it."""
        self.thread.spare = None
        self._wrappers.clear()
        self.trie.clear()

    def called(self) -> set[str]:
        """The addresses of the modules that were called."""
        return {address for frame in self._called for address in (frame.module_address, *frame.aliases)}

    # The wrapper of module calls.

    def wrapper(self, call: Call | None) -> Call:  # noqa: C901
        """What stands before ``call``, the next wrapper; None stands for the module's own call.

        It runs for every module call of the process, and in a small policy a function call more is already worth
        leaving out. So it is one function, and what it needs of ``self`` is in local variables.
        """
        tracked_modules, thread, wrappers, sees_ops = self.registry.by_id, self.thread, self._wrappers, self._sees_ops
        call_root, enter = self.call_root, self._enter
        call_special, call_untracked = self._call_special, self._call_untracked
        hooks, pre_hooks, backward_hooks, backward_pre_hooks = GLOBAL_HOOKS

        def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: C901
            mode = thread.mode
            if mode is None:  # outside of any pass
                tracked = tracked_modules.get(id(module))
                if tracked is None or thread.recording_disabled:
                    return pass_on(call, module, args, kwargs)
                wrapper = wrappers.get(call)
                if wrapper is None:  # closed meanwhile, by another thread
                    return pass_on(call, module, args, kwargs)
                return call_root(wrapper, call, tracked, args, kwargs)
            # What autograd runs again is no event. Where ops are seen, the mode has seen the call of autograd, and runs
            # it unrecorded.
            if not sees_ops and graph_task_id() != -1:
                return pass_on(call, module, args, kwargs)

            # Find the node: that of the last pass that came here, or the long way.
            enter_node = mode.node.next_module
            if enter_node.module is not module:
                other_node = enter(mode, module)
                if other_node is None:
                    return call_untracked(mode, call, module, args, kwargs)
                enter_node = other_node
            mode.node = enter_node
            if enter_node.has_kept_leaves:
                mode.feed_arguments(enter_node, args, kwargs)

            # Does it run hooks? An attribute of a module is looked up in its class first, so its dict is read directly.
            state = module.__dict__
            is_unhooked = not (
                state["_forward_hooks"]
                or state["_forward_pre_hooks"]
                or state["_backward_hooks"]
                or state["_backward_pre_hooks"]
                or hooks
                or pre_hooks
                or backward_hooks
                or backward_pre_hooks
            )

            # The mode costs about 1 us per op, so it is taken off the stack around modules in which it has nothing to
            # see. What a hook runs, or a forward that the user has put in place, has to be seen.
            tracked = enter_node.tracked
            only_op: TrieNode | None = None
            toggled = False
            if (
                enter_node.runs_no_ops
                and is_unhooked
                and "forward" not in state
                and module.__class__ is tracked.module_class  # type: ignore[union-attr]
            ):
                only_op = enter_node.only_op
                if mode.on_stack:
                    toggled = mode.suspend()
                    if not toggled:
                        only_op = None  # somebody's mode stands before ours, so ours stays and sees the op itself
            elif sees_ops and not mode.on_stack:
                toggled = mode.resume()

            try:
                if enter_node.is_special or state.get("_compiled_call_impl") is not None:
                    out = call_special(mode, enter_node, call, module, args, kwargs)
                elif call is not None:
                    out = call(module, *args, **kwargs)
                elif is_unhooked and tracked.calls_forward and tracing_state() is None:  # type: ignore[union-attr]
                    # What call_impl does with a module without hooks, less a frame.
                    out = module.forward(*args, **kwargs)
                else:
                    out = module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
            except BaseException:
                if toggled:
                    mode.toggle()
                mode.raised(enter_node)
                raise

            if toggled:
                mode.toggle()
            if only_op is not None:
                mode.returned(only_op, out, args)
            exit_node = mode.node.next_return or mode.leave(enter_node)
            mode.node = exit_node
            if exit_node.has_kept_leaves:
                mode.feed_value(exit_node, out)
            return out

        self._wrappers[call] = __call__
        return __call__

    def _call_special(
        self, mode: OpMode, enter_node: TrieNode, call: Call | None, module: nn.Module, args: Any, kwargs: Any
    ) -> Any:
        """Call a module that can't be called as most are."""
        if enter_node.is_opaque or module._compiled_call_impl is not None:
            out = self._call_unseen(mode, partial(pass_on, call, module, args, kwargs))
            mode.returned_opaque(enter_node, out)
            return out
        run = partial(self._call_opened, call, module, args, kwargs)
        if not enter_node.is_compared or enter_node.tracked is None:
            return run()
        # By `forward`, because hooks must not run twice.
        run_fused = partial(self._call_unseen, mode, partial(module.forward, *args, **kwargs))
        try:
            return self._special.run_compared(enter_node.tracked, run_fused, run, args, kwargs)
        except UnsupportedModelError as error:
            mode.run.fail(error)
            raise

    def _call_opened(self, call: Call | None, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call a module without its fused kernel: something inside is kept."""
        if self._sees_ops:
            return pass_on(call, module, args, kwargs)
        with PlainMode():  # the inside must be run module by module though no ops are seen
            return pass_on(call, module, args, kwargs)

    def _call_untracked(self, mode: OpMode, call: Call | None, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call a module that belongs to no root; its ops are those of the module that calls it."""
        if runs_compiled(module):
            return self._call_unseen(mode, partial(pass_on, call, module, args, kwargs))
        toggled = self._sees_ops and mode.resume()
        try:
            return pass_on(call, module, args, kwargs)
        finally:
            if toggled:
                mode.toggle()

    def _call_unseen(self, mode: OpMode, call: Callable[[], Any]) -> Any:
        """Call a module without the mode, which would change how it computes."""
        with off_stack(mode):
            return self.thread.run_unrecorded(call)

    # Finding and making nodes of modules.

    def _enter(self, mode: OpMode, module: nn.Module) -> TrieNode | None:
        """The node where another module than last time is entered; None for a module that belongs to no root."""
        tracked = self.registry.by_id.get(id(module)) or self.registry.find_late(module)
        if tracked is not None and not self.registry.is_in_place(tracked, module):
            tracked = self.registry.find_moved(module)
        if tracked is None:
            return None
        node = mode.node
        # Whether a fused path is taken can change from call to call, so it is part of the edge and asked each time:
        # such a node is never `next_module`.
        step: Any = (tracked, may_fuse_now(module)) if tracked.has_fused_path else tracked
        enter_node = node.edges.get(step) or self._grow(mode, tracked, step)
        if enter_node is not None and not tracked.has_fused_path:
            if enter_node.module is not None and enter_node.module is not module and tracked.runs_one_op:
                enter_node.runs_no_ops, enter_node.only_op = False, None  # another of its class may run more ops
            enter_node.module = module
            node.next_module = enter_node
        return enter_node

    def _grow(self, mode: OpMode, tracked: TrackedModule, step: Any) -> TrieNode | None:
        may_fuse = step is not tracked and step[1]
        is_compiled = is_compiled_or_scripted(tracked.module)
        enter_node = mode.enter(tracked, step, own_numbering=may_fuse or is_compiled)
        self._called.add(tracked.frame)
        if enter_node is not None:
            enter_node.runs_no_ops = tracked.runs_no_ops and mode.may_suspend
            if may_fuse or is_compiled:
                self._special.decide(enter_node, is_compiled=is_compiled)
        return enter_node

    # Passes.

    def call_root(
        self, wrapper: Call, call: Call | None, tracked: TrackedModule, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call of a tracked module from outside of any pass: it is one, and ``wrapper`` runs it."""
        module = tracked.module
        if graph_task_id() != -1:  # autograd is running a part of an earlier forward pass again
            return pass_on(call, module, args, kwargs)
        if self.refresh():
            return self._call_moved(wrapper, call, module, args, kwargs)
        run = self._begin_run(tracked)
        if run is None:
            return self.thread.run_unrecorded(pass_on, call, module, args, kwargs)
        if self._pass_filter is not None and not self._pass_filter(run):
            return self._run_unwatched(run, call, module, args, kwargs)
        mode = self._begin(run, self.trie.root)
        try:
            if self._sources:
                self._feed_inputs(mode, tracked, args, kwargs)
            if self._sees_ops:
                mode.push_mode()
                try:
                    out = wrapper(module, *args, **kwargs)
                finally:
                    mode.pop_mode()
            else:
                out = wrapper(module, *args, **kwargs)
        except BaseException as error:
            if not self._end(mode, error):
                raise
            return None
        self._end(mode, None)
        return out

    def _begin_run(self, tracked: TrackedModule) -> Any:
        """What the listener makes of a pass that begins; None where it is not recorded."""
        if functorch_level() is not None:
            self._warn("transform", _TRANSFORMED)
        elif tracing_state() is not None:
            self._warn("trace", _TRACED)
        else:
            return self._listener.begin(tracked.address)
        return None

    def _call_moved(self, wrapper: Call, call: Call | None, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A call from outside of any pass of a module that may have another address now, or belong to no root."""
        tracked = self.registry.by_id.get(id(module))
        if tracked is None:
            return pass_on(call, module, args, kwargs)
        return self.call_root(wrapper, call, tracked, args, kwargs)

    def on_thread_start(self, name: str) -> None:
        """This thread starts another one, or gives work to it, by the method of this name."""
        mode = self.thread.mode
        if mode is not None:
            mode.started_thread(name)
            self._warn_of_thread("thread", _IN_ANOTHER_THREAD.format(name))

    def refresh(self) -> bool:
        """Forget the known paths if modules have moved since; whether any has."""
        if not self.registry.refresh():
            return False
        self.registry.has_moved = False
        self.trie.clear()
        return True

    def enter_region(self, name: str) -> OpMode | None:
        """Make what this thread runs from now on one pass; None where the listener does not record it."""
        if self.thread.mode is not None:
            raise SessionError(NESTED_REGION)
        self.refresh()
        run = self._listener.begin(name)
        if run is None:
            return None
        mode = self._begin(run, self.trie.region(name))
        if self._sees_ops:
            mode.push_mode()
        return mode

    def leave_region(self, mode: OpMode, error: BaseException | None) -> bool:
        """End the region's pass; whether the listener takes the exception as its own."""
        if self._sees_ops:
            mode.pop_mode()
        return self._end(mode, error)

    def _run_unwatched(
        self, run: Any, call: Call | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A pass of which nothing can be kept."""
        try:
            out = self.thread.run_unrecorded(pass_on, call, module, args, kwargs)
        except BaseException as error:
            if not self._listener.end(run, error):
                raise
            return None
        self._listener.end(run, None)
        return out

    def _begin(self, run: Any, root: TrieNode) -> OpMode:
        if not self._is_known_to_dynamo:  # somebody may have imported it since
            self._is_known_to_dynamo = keep_out_of_compiling()
        thread = self.thread
        mode = thread.spare or self._make_mode(thread)
        thread.spare = None
        thread.mode = mode
        if isinstance(mode, TracingMode) and self._sources:
            mode.watch_buffers(self._buffers())
        mode.begin(run, root)
        return mode

    def _end(self, mode: OpMode, error: BaseException | None) -> bool:
        thread, registry, trie = self.thread, self.registry, self.trie
        thread.mode = None
        thread.spare = mode
        run, mode.run = mode.run, None
        if mode.new_nodes or registry.has_moved:
            trie.size += mode.new_nodes
            mode.new_nodes = 0
            # On the known paths, a module that has moved would be taken for what it was.
            if trie.size > MAX_TRIE_NODES or registry.has_moved:
                registry.has_moved = False
                trie.clear()
        return self._listener.end(run, error)

    def _feed_inputs(self, mode: OpMode, tracked: TrackedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for path, value in argument_leaves(args, kwargs):
            mode.source(SourceStep("input", path), tracked.input_prefix + path, path.strip(".[]"), value)

    def _buffers(self) -> dict[int, tuple[Tensor, str]]:
        """The buffers of all modules by their id, with their addresses."""
        return {
            id(buffer): (buffer, f"{tracked.address}.{name}" if tracked.address else name)
            for tracked in self.registry.by_id.values()
            for name, buffer in tracked.module._buffers.items()
            if buffer is not None
        }


NESTED_REGION = (
    "a region can't begin inside of a pass or of another region of the same recorder and thread; end that one first, "
    "or open the region around the outermost call"
)
