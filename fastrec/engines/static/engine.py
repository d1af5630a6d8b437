"""The static engine: the user's promise that every pass runs the same ops, as with DDP's ``static_graph``.

    engine = StaticEngine(make_skip_test=skips_pass, make_batch=make_batch, check_every=1000)
    engine.open({"": model}, listener)
    model(x)  # the first two or three passes run eagerly, and show where what is kept appears
    model(x)  # from then on only the module calls are touched that it can be taken from

Most of what the eager engine does is to see ops that nobody keeps. Where every pass is the same, that is known in
advance. The promise is checked as far as it costs nothing: calls of scheduled modules have to come in their order and
number, and every ``check_every`` passes one runs eagerly again and is compared op by op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, Generic, NoReturn

import torch
from torch import Tensor, nn

from fastrec._errors import BrokenPromiseError, SessionError
from fastrec._torch.dynamo import runs_compiled
from fastrec._torch.internals import GLOBAL_HOOKS, functorch_level, graph_task_id, tracing_state
from fastrec._torch.tensors import clone_like
from fastrec._torch.trees import leaves
from fastrec.engines._protocol import (
    WATCH_OPS,
    Listener,
    MakePassBatch,
    MakeSkipTest,
    PassFilter,
    ResultT,
    Run,
    RunT,
    WatchOptions,
)
from fastrec.engines.eager.engine import eager_passes
from fastrec.engines.eager.mode import OpMode
from fastrec.engines.eager.module_calls import MODULE_CALLS, Call, has_hooks, pass_on
from fastrec.engines.eager.modules import TrackedModule, may_fuse_now
from fastrec.engines.eager.passes import NESTED_REGION
from fastrec.engines.eager.threads import THREAD_STARTS
from fastrec.engines.eager.trie import TrieNode
from fastrec.engines.static.schedule import (
    OPAQUE,
    SCHEDULED,
    UNHOOKED,
    Replay,
    Route,
    Schedule,
    ScheduledCall,
    StaticThread,
    first_difference,
)
from fastrec.engines.static.warmup import Warmup, WarmupListener, WarmupPass
from fastrec.events.sites import Frame

MAX_WARMUP_PASSES = 8
"""Passes that may run differently at first (caches are filled, lazy modules made) before the promise is broken."""

_grad_is_on = torch.is_grad_enabled  # without the lookup in torch, in every pass


class StaticEngine(Generic[RunT]):
    """Watches the first passes eagerly, then takes what is kept from the module calls where it appears.

    Arguments:
        watch: what is an event; with sources or parents all passes run eagerly.
        make_skip_test: makes the test that tells before a replay that nothing will be kept in it.
        make_batch: makes taps that are fed together when a pass ends.
        check_every: after so many replays, a pass runs eagerly and is compared with them.
        pass_filter: whether something of a pass that begins could be kept; the others are not watched.
        allow_unfused: whether a module may compute something else than with its fused kernel where its inside is kept.
    """

    is_compiled = False

    def __init__(
        self,
        watch: WatchOptions = WATCH_OPS,
        *,
        make_skip_test: MakeSkipTest[RunT],
        make_batch: MakePassBatch[RunT],
        check_every: int,
        pass_filter: PassFilter[RunT] | None = None,
        allow_unfused: bool = False,
    ) -> None:
        self._watch = watch
        self._make_skip_test = make_skip_test
        self._make_batch = make_batch
        self._check_every = check_every
        self._pass_filter = pass_filter
        self._allow_unfused = allow_unfused
        self._thread = StaticThread()
        self._routes: dict[Any, Route] = {}
        self._wrappers: dict[Call | None, Call] = {}  # as those of eager passes, and for the same reason
        self._is_open = False

    def open(self, roots: Mapping[str, nn.Module], listener: Listener[RunT]) -> None:
        """Begin to watch the roots, in all threads."""
        self._listener = listener
        self._warmup_listener = WarmupListener(listener, self._thread, self._end_eager_pass)
        pass_filter = None if self._pass_filter is None else self._watches
        self._passes = eager_passes(
            roots, self._warmup_listener, self._watch, pass_filter, allow_unfused=self._allow_unfused
        )
        self._trie_root = self._passes.trie.root
        self._fusing = [tracked.module for tracked in self._passes.registry.by_id.values() if tracked.has_fused_path]
        self._is_open = True
        MODULE_CALLS.add(self._wrapper, self, self._passes.registry.classes())
        THREAD_STARTS.add(self._passes.on_thread_start)

    def close(self) -> None:
        """Stop watching; passes that still run in other threads are no longer seen."""
        self._is_open = False
        THREAD_STARTS.remove(self._passes.on_thread_start)
        MODULE_CALLS.remove(self._wrapper)
        self._passes.close()
        self._thread.spare_replay = None
        self._wrappers.clear()
        self._routes.clear()

    def enter_region(self, name: str) -> OpMode | Replay | None:
        """Make what this thread runs from now on one pass; None where the listener does not record it."""
        if self._thread.replay is not None or self._passes.thread.mode is not None:
            raise SessionError(NESTED_REGION)
        self._refresh()
        route = self._route(("region", name), name, False)
        if route.schedule is not None and route.replays_left > 0:
            return self._begin_replay(route, route.schedule, self._listener.begin(name))
        self._begin_eager_pass(route)
        mode = self._passes.enter_region(name)
        if mode is None:
            self._thread.route = self._thread.warmup_pass = None
        return mode

    def leave_region(self, region: object, error: BaseException | None) -> bool:
        """End the region's pass; whether the listener takes the exception as its own."""
        if isinstance(region, Replay):
            return self._end_replay(region, error)
        assert isinstance(region, OpMode)
        return self._passes.leave_region(region, error)

    def unseen(self, function: Callable[..., ResultT], *args: object) -> ResultT:
        """Run a function in this thread without recording anything that it calls, by other recorders neither."""
        return MODULE_CALLS.run_unrecorded(function, *args)

    def run_unrecorded(self, function: Callable[..., ResultT], /, *args: Any, **kwargs: Any) -> ResultT:
        """Run a function without recording anything that it calls."""
        thread = self._thread
        replay, warmup_pass = thread.replay, thread.warmup_pass
        thread.replay = thread.warmup_pass = None
        try:
            return self._passes.thread.run_unrecorded(function, *args, **kwargs)
        finally:
            thread.replay, thread.warmup_pass = replay, warmup_pass

    def frames(self) -> list[Frame]:
        """The modules that it knows, for messages."""
        return self._passes.registry.frames()

    def called(self) -> set[str]:
        """The addresses of the modules that were called, for messages."""
        return self._passes.called()

    # The wrapper of module calls.

    def _wrapper(self, call: Call | None) -> Call:  # noqa: C901
        """What stands before ``call``, the next wrapper; None stands for the module's own call.

        In one piece, as that of eager passes: it runs for every module call of a replay.
        """
        eager_call = self._passes.wrapper(call)
        tracked_modules, eager_thread = self._passes.registry.by_id, self._passes.thread
        thread, wrappers = self._thread, self._wrappers
        call_root, call_otherwise = self._call_root, self._call_otherwise
        call_watched, take_leaves = self._call_watched, self._take_leaves
        hooks, pre_hooks, backward_hooks, backward_pre_hooks = GLOBAL_HOOKS

        def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: C901
            replay = thread.replay
            if replay is None:
                if eager_thread.mode is not None:  # in an eager pass
                    out = eager_call(module, *args, **kwargs)
                    if thread.warmup_pass is not None:
                        thread.warmup_pass.on_return(eager_thread.mode.node, module, out)
                    return out
                tracked = tracked_modules.get(id(module))
                if tracked is None or eager_thread.recording_disabled:
                    return pass_on(call, module, args, kwargs)
                wrapper = wrappers.get(call)
                if wrapper is None:  # closed meanwhile, by another thread
                    return pass_on(call, module, args, kwargs)
                return call_root(wrapper, call, tracked, args, kwargs)

            # Which call is it? Most modules of most models are UNHOOKED: nothing is taken from them.
            way = replay.ways.get(id(module))
            if way == SCHEDULED:
                scheduled = replay.next_call
                if scheduled.module is not module or not scheduled.is_plain or graph_task_id() != -1:
                    return call_otherwise(replay, eager_call, call, module, args, kwargs)
                replay.next_call = scheduled.next_call
            elif way != UNHOOKED:
                return call_otherwise(replay, eager_call, call, module, args, kwargs)

            # An attribute of a module is looked up in its class first, so its dict is read directly.
            state = module.__dict__
            if not (
                state["_forward_hooks"]
                or state["_forward_pre_hooks"]
                or state["_backward_hooks"]
                or state["_backward_pre_hooks"]
                or hooks
                or pre_hooks
                or backward_hooks
                or backward_pre_hooks
                or "_compiled_call_impl" in state
            ):
                # What call_impl does with a module without hooks, less a frame.
                out = module.forward(*args, **kwargs) if call is None else call(module, *args, **kwargs)
            elif way == SCHEDULED and scheduled.op_taps:
                replay.next_call = scheduled
                # A hook may return something else than the op gave, or write to it.
                return call_watched(replay, eager_call, module, args, kwargs)
            else:
                out = pass_on(call, module, args, kwargs)

            if way == SCHEDULED:
                values = replay.values
                if out.__class__ is not Tensor:
                    take_leaves(replay, scheduled, out)
                elif values is None:
                    run = replay.run
                    for tap in scheduled.taps:
                        tap(run, out)
                elif scheduled.is_one_lasting:
                    values.append(out)
                    replay.times.append(perf_counter())
                else:
                    for is_lasting in scheduled.are_lasting:
                        values.append(out if is_lasting else clone_like(out))
                        replay.times.append(perf_counter())
            return out

        self._wrappers[call] = __call__
        return __call__

    def _call_root(
        self, wrapper: Call, call: Call | None, tracked: TrackedModule, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call into a root from outside: a pass, by its schedule if there is one."""
        module = tracked.module
        if graph_task_id() != -1:  # autograd is running a part of an earlier forward pass again
            return pass_on(call, module, args, kwargs)
        if self._refresh():
            address_now = self._passes.registry.by_id.get(id(module))
            if address_now is None:  # it is no longer a part of any root
                return pass_on(call, module, args, kwargs)
            tracked = address_now
        route = self._route(id(module), tracked.name, module.training)
        schedule = route.schedule
        if schedule is None or route.replays_left <= 0 or functorch_level() is not None or tracing_state() is not None:
            self._begin_eager_pass(route)
            try:
                return self._passes.call_root(wrapper, call, tracked, args, kwargs)
            finally:
                self._thread.route = self._thread.warmup_pass = None
        replay = self._begin_replay(route, schedule, self._listener.begin(tracked.address))
        try:
            out = wrapper(module, *args, **kwargs)
        except BaseException as error:
            if not self._end_replay(replay, error):
                raise
            return None
        self._end_replay(replay, None)
        return out

    def _refresh(self) -> bool:
        """Forget all schedules if modules have moved since; whether any has."""
        if not self._passes.refresh():
            return False
        self._trie_root = self._passes.trie.root
        self._routes.clear()
        return True

    def _route(self, entry: Any, name: str, training: bool) -> Route:
        """What is known of passes like the one that begins."""
        # Whether gradients are on and which modules may fuse decides what runs, and may change from pass to pass.
        key: tuple[Any, ...] = (entry, training, _grad_is_on())
        if self._fusing:
            key = (*key, *map(may_fuse_now, self._fusing))
        return self._routes.get(key) or self._routes.setdefault(key, Route(name))

    # Eager passes: warm-up, and the checks in between.

    def _begin_eager_pass(self, route: Route) -> None:
        if self._watch.sources or self._watch.parents:
            return  # all passes run eagerly, so there is nothing to learn
        self._thread.route = route
        if route.schedule is None or not route.schedule.runs_eagerly:
            self._thread.warmup_pass = WarmupPass()

    def _watches(self, run: RunT) -> bool:
        """Whether an eager pass that begins has to be watched: also where something is still to be learned from it."""
        route = self._thread.route
        if route is not None and (route.schedule is None or not route.schedule.runs_eagerly):
            return True
        assert self._pass_filter is not None
        is_watched = self._pass_filter(run)
        if not is_watched:
            self._thread.route = None  # nothing can be learned from it
        return is_watched

    def _end_eager_pass(self, run: Run, error: BaseException | None) -> None:
        route, warmup_pass = self._thread.route, self._thread.warmup_pass
        self._thread.route = self._thread.warmup_pass = None
        mode = self._passes.thread.spare
        if route is not None and mode is not None and error is None and run.error is None:
            self._learn(route, warmup_pass, mode.node, run)

    def _learn(self, route: Route, warmup_pass: WarmupPass | None, final: TrieNode, run: Run) -> None:
        if self._passes.trie.root is not self._trie_root:  # the trie has been made anew, so all paths are void
            self._trie_root = self._passes.trie.root
            self._routes.clear()
            return
        if route.final is not final:
            route.attempts += 1
            if route.final is not None and (route.schedule is not None or route.attempts > MAX_WARMUP_PASSES):
                run.fail(self._broken(route, first_difference(route.final, final)))
                return
            route.final = final
            route.warmup = Warmup()
            if warmup_pass is not None:
                route.warmup.add(warmup_pass)
            return
        if warmup_pass is not None:
            route.warmup.add(warmup_pass)
            route.schedule = Schedule(final, route.warmup, self._make_skip_test, self._make_batch)
        assert route.schedule is not None
        route.replays_left = 0 if route.schedule.runs_eagerly else self._check_every

    # Replays.

    def _begin_replay(self, route: Route, schedule: Schedule, run: RunT | None) -> Replay:
        """A pass begins that runs by its schedule; without a run nothing of it is recorded."""
        thread = self._thread
        route.replays_left -= 1
        replay = thread.spare_replay
        thread.spare_replay = None
        if replay is None:
            replay = Replay()
            replay.mode = OpMode(self._warmup_listener, self._passes.thread, may_suspend=self._watch.sees_ops)
        replay.route, replay.schedule, replay.run = route, schedule, run
        replay.values = None
        if run is None or (schedule.skip_test is not None and schedule.skip_test(run)):
            replay.ways, replay.next_call = schedule.idle_ways, schedule.end
        else:
            replay.ways, replay.next_call = schedule.ways, schedule.first
            if schedule.batch is not None and schedule.batch.is_ready():
                replay.batch, replay.values, replay.times = schedule.batch, [], []
        thread.replay = replay
        return replay

    def _end_replay(self, replay: Replay, error: BaseException | None) -> bool:
        thread = self._thread
        thread.replay = None
        run, values = replay.run, replay.values
        replay.run = replay.values = None
        thread.spare_replay = replay
        if run is None:
            return False
        if error is None and replay.next_call is not replay.schedule.end and self._is_open:
            run.fail(self._broken(replay.route, f"{replay.next_call.name!r} was not called"))
        elif values:
            try:
                replay.batch(run, values, replay.times)
            except BrokenPromiseError as broken:
                replay.route.forget()
                run.fail(broken)
        return self._listener.end(run, error)

    def _call_otherwise(
        self,
        replay: Replay,
        eager_call: Call,
        call: Call | None,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A call in a replay that is not as simple as most are."""
        way = replay.ways.get(id(module))
        # Autograd is running a part of the forward pass again, or the module is one event, or nothing is recorded.
        if graph_task_id() != -1 or way == OPAQUE or replay.run is None:
            return self.run_unrecorded(pass_on, call, module, args, kwargs)
        if way is None:
            registry = self._passes.registry
            if not (registry.by_id.get(id(module)) or registry.find_late(module)):
                return self._call_untracked(call, module, args, kwargs)
            way = self._look_again(replay, module)
        scheduled = replay.next_call
        if way is None or (way == SCHEDULED and scheduled.module is not module):
            self._refuse(replay, module)
        if way != SCHEDULED:
            return pass_on(call, module, args, kwargs)
        if scheduled.is_watched or (scheduled.op_taps and has_hooks(module)):
            return self._call_watched(replay, eager_call, module, args, kwargs)
        return self._call_scheduled(replay, call, module, args, kwargs)

    def _look_again(self, replay: Replay, module: nn.Module) -> int | None:
        """How a module is called that may have come in the place of another one."""
        is_idle = replay.ways is replay.schedule.idle_ways
        replay.schedule.look_again()
        replay.ways = replay.schedule.idle_ways if is_idle else replay.schedule.ways
        return replay.ways.get(id(module))

    def _call_scheduled(
        self, replay: Replay, call: Call | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The call that comes next in the schedule, whatever is taken from it."""
        scheduled = replay.next_call
        replay.next_call = scheduled.next_call
        if scheduled.takes_arguments:
            replay.mode.run = replay.run
            replay.mode.feed_arguments(scheduled.enter_node, args, kwargs)
        if scheduled.is_opaque:
            out = self.run_unrecorded(pass_on, call, module, args, kwargs)
        else:
            out = pass_on(call, module, args, kwargs)
        if type(out) is Tensor:
            for tap in scheduled.taps:
                tap(replay.run, out)
        else:
            self._take_leaves(replay, scheduled, out)
        return out

    def _call_untracked(
        self, call: Call | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a module that belongs to no root."""
        if runs_compiled(module):
            return self.run_unrecorded(pass_on, call, module, args, kwargs)
        return pass_on(call, module, args, kwargs)

    def _call_watched(
        self, replay: Replay, eager_call: Call, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call one module as in an eager pass, with the calls inside of it."""
        scheduled, thread, eager_thread, mode = replay.next_call, self._thread, self._passes.thread, replay.mode
        before_entry = scheduled.enter_node.parent
        assert before_entry is not None
        replay.next_call = scheduled.next_call
        mode.begin(replay.run, before_entry)
        thread.replay, eager_thread.mode = None, mode
        if self._watch.sees_ops:
            mode.push_mode()
        try:
            out = eager_call(module, *args, **kwargs)
        finally:
            if self._watch.sees_ops:
                mode.pop_mode()
            thread.replay, eager_thread.mode = replay, None
            node = mode.node
        if node is not scheduled.exit_node:
            self._fail(replay, first_difference(scheduled.exit_node or scheduled.enter_node, node))
        return out

    def _take_leaves(self, replay: Replay, scheduled: ScheduledCall, out: Any) -> None:
        """Feed the taps of what a module returned that is not a single tensor."""
        mode = replay.mode
        mode.run = replay.run
        # A value of which leaves are taken is never held, so one that comes where values are held breaks the promise.
        tensors = dict(leaves(out)) if replay.values is None else {}
        for _, path in (*scheduled.op_taps, *scheduled.out_taps):
            if path not in tensors:
                self._fail(replay, f"{scheduled.name!r} returned no tensor" + (f" at {path!r}" if path else ""))
        for tap, path in scheduled.op_taps:
            tap.tap(replay.run, tensors[path])
        if scheduled.out_taps and scheduled.exit_node is not None:
            mode.feed(scheduled.exit_node, tensors.items())

    # Broken promises.

    def _refuse(self, replay: Replay, module: nn.Module) -> NoReturn:
        tracked = self._passes.registry.by_id.get(id(module))
        name = tracked.name if tracked else type(module).__name__
        is_end = replay.next_call is replay.schedule.end
        expected = "no more call was" if is_end else f"that of {replay.next_call.name!r} was"
        self._fail(replay, f"{name!r} was called, where {expected} expected")

    def _fail(self, replay: Replay, difference: str) -> NoReturn:
        error = self._broken(replay.route, difference)
        replay.run.fail(error)
        raise error

    def _broken(self, route: Route, difference: str) -> BrokenPromiseError:
        route.forget()
        return BrokenPromiseError(
            f"a pass of {route.entry!r} ran other ops than the passes before it: {difference}. engine='static' is the "
            "promise that every pass runs the same ops; use engine='eager' for this model"
        )
