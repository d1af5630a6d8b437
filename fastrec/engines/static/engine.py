"""The static engine: the user's promise that every pass runs the same ops, as with DDP's ``static_graph``.

The first passes run as those of the eager engine, and show where what is kept appears. Later passes touch only the
module calls that it can be taken from. Now and then a pass runs eagerly again, to see whether the promise is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fastrec._errors import BrokenPromiseError, SessionError
from fastrec._torch.internals import GLOBAL_HOOKS, functorch_level, graph_task_id, tracing_state
from fastrec._torch.tensors import clone_like
from fastrec._torch.trees import leaves
from fastrec._torch.wrappers import runs_compiled
from fastrec.engines._protocol import Listener, MakePassBatch, MakeSkipTest, PassFilter
from fastrec.engines.eager.engine import EagerEngine, _plain
from fastrec.engines.eager.mode import OpMode
from fastrec.engines.eager.module_calls import Call
from fastrec.engines.eager.modules import TrackedModule, is_fused_now
from fastrec.engines.static.schedule import (
    HIDDEN,
    STEP,
    UNHOOKED,
    Replay,
    Route,
    Schedule,
    ScheduledCall,
    call_name,
    first_difference,
    start_of,
)
from fastrec.engines.static.warmup import StaticThread, Warmup, WarmupListener, WarmupPass

MAX_WARMUP_PASSES = 8
"""Passes that may run differently at first (caches are filled, lazy modules made) before the promise is broken."""

_grad_is_on = torch.is_grad_enabled


class StaticEngine(EagerEngine):
    """Watches the first passes eagerly, then takes what is kept from the module calls where it appears.

    Arguments:
        idle: tells before a pass runs that nothing will be kept in it.
        batch: makes taps that are fed together when a pass ends.
        check_every: after so many passes by plan, one runs eagerly and is compared with it.
        watching: options of ``EagerEngine``; with sources or parents all passes run eagerly.
    """

    _thread: StaticThread

    def __init__(self, *, idle: MakeSkipTest, batch: MakePassBatch, check_every: int, **watching: Any) -> None:
        super().__init__(**watching)
        self._thread = StaticThread()
        self._idle = idle
        self._batch = batch
        self._check_every = check_every
        self._courses: dict[Any, Route] = {}
        self._whole = self._sources or self._parents
        self._open = False

    def open(self, roots: Mapping[str, nn.Module], listener: Listener) -> None:
        """Begin to watch the roots, in every thread."""
        self._open = True
        super().open(roots, listener)
        self._direct = listener
        self._listener = WarmupListener(listener, self._thread)
        self._fusing = [known.module for known in self._table.known.values() if known.may_fuse]

    def close(self) -> None:
        """Stop watching; passes that still run in other threads are no longer seen."""
        self._open = False
        super().close()
        self._thread.spare_now = None
        self._courses.clear()

    def enter_region(self, name: str) -> Any:
        """Make what this thread runs from now on one pass; None where the listener does not record it."""
        thread = self._thread
        if thread.now is not None:
            raise SessionError(
                "a region can't begin inside of a pass or of another region of the same recorder and thread; "
                "end the one before, or open the region around the outermost call"
            )
        course = self._course(("", name), name, training=False)
        plan = course.plan
        if plan is None or course.left <= 0:
            self._begin_lesson(course)
            token = super().enter_region(name)
            if token is None:
                thread.course = thread.lesson = None
            return token
        return self._begin_by_plan(course, plan, self._direct.begin(name))

    def leave_region(self, token: Any, error: BaseException | None) -> bool:
        """End the region's pass; whether the listener takes the exception as its own."""
        if isinstance(token, Replay):
            return self._end_by_plan(token, error)
        return super().leave_region(token, error)

    # In one piece, because each function more costs every module call.
    def _make_layer(self, call: Call | None) -> Call:  # noqa: C901
        """The wrapper of module calls; ``call`` is what comes next, None the module itself."""
        eager = super()._make_layer(call)
        known_modules = self._table.known
        thread = self._thread
        outermost, step_aside = self._outermost_or_learn, self._step_aside
        watch, take = self._watch, self._take
        hooks, pre_hooks, backward_hooks, backward_pre_hooks = GLOBAL_HOOKS

        def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: C901
            now = thread.now
            if now is None:
                if thread.mode is None:
                    known = known_modules.get(id(module))
                    if known is None or thread.muted:
                        return _plain(call, module, args, kwargs)
                    return outermost(__call__, eager, call, known, args, kwargs)
                out = eager(module, *args, **kwargs)
                if thread.lesson is not None:
                    thread.lesson.returned(thread.mode.node, module, out)
                return out
            kind = now.modules.get(id(module))
            if kind == STEP:
                step = now.step
                if step.module is not module or not step.plain or graph_task_id() != -1:
                    return step_aside(now, eager, call, module, args, kwargs)
                now.step = step.after
            elif kind != UNHOOKED:
                return step_aside(now, eager, call, module, args, kwargs)
            # One dict, because each attribute of a module is looked up in its class first.
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
                # What torch's own call does with a module that has no hooks.
                out = module.forward(*args, **kwargs) if call is None else call(module, *args, **kwargs)
            elif kind == STEP and step.ops:
                now.step = step  # a hook may return or write something else than the op gave
                return watch(now, eager, module, args, kwargs)
            else:
                out = _plain(call, module, args, kwargs)
            if kind == STEP:
                if out.__class__ is Tensor:
                    held = now.held
                    if held is None:
                        run = now.run
                        for tap in step.taps:
                            tap(run, out)
                    else:
                        if step.is_held:
                            held.append(out)
                            now.times.append(perf_counter())
                        else:
                            for is_lasting in step.lasting:
                                held.append(out if is_lasting else clone_like(out))
                                now.times.append(perf_counter())
                else:
                    take(now, step, out)
            return out

        return __call__

    def _outermost_or_learn(
        self,
        layer: Call,
        eager: Call,
        call: Call | None,
        known: TrackedModule,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A call into a root from outside: a pass, by its plan if there is one."""
        module = known.module
        if graph_task_id() != -1:  # autograd runs a part of an earlier forward pass again
            return _plain(call, module, args, kwargs)
        if self._fusing:
            course = self._course(id(module), known.name, training=module.training)
        else:
            key = id(module), module.training, _grad_is_on()
            found = self._courses.get(key)
            course = self._courses.setdefault(key, Route(known.name)) if found is None else found
        plan = course.plan
        if plan is None or course.left <= 0 or functorch_level() is not None or tracing_state() is not None:
            self._begin_lesson(course)
            try:
                return self._outermost(layer, call, known, args, kwargs)
            finally:
                self._thread.course = self._thread.lesson = None
        now = self._begin_by_plan(course, plan, self._direct.begin(known.address))
        try:
            out = layer(module, *args, **kwargs)
        except BaseException as error:
            if not self._end_by_plan(now, error):
                raise
            return None
        self._end_by_plan(now, None)
        return out

    def _skips(self, run: Any, ahead: PassFilter) -> bool:
        """Whether a pass that runs eagerly need not be watched: not where something is still to be learned of it."""
        course = self._thread.course
        learned = course is None or (course.plan is not None and course.plan.whole)
        return learned and super()._skips(run, ahead)

    def _course(self, entry: Any, called: str, *, training: bool) -> Route:
        """What is known of passes like the one that begins."""
        key: tuple[Any, ...] = (entry, training, torch.is_grad_enabled())
        if self._fusing:
            key = (*key, *map(is_fused_now, self._fusing))
        course = self._courses.get(key)
        return course or self._courses.setdefault(key, Route(called))

    def _begin_lesson(self, course: Route) -> None:
        if self._whole:
            return
        self._thread.course = course
        if course.plan is None or not course.plan.whole:
            self._thread.lesson = WarmupPass()

    def _begin_by_plan(self, course: Route, plan: Schedule, run: Any) -> Replay:
        """A pass begins that runs by its plan; without a run nothing of it is recorded."""
        thread = self._thread
        course.left -= 1
        now: Replay | None = thread.spare_now
        thread.spare_now = None
        if now is None:
            now = Replay()
            now.mode = OpMode(self._listener, thread, may_rest=self._ops)
        now.course, now.plan, now.run = course, plan, run
        now.held = None
        if run is None or (plan.idle is not None and plan.idle(run)):
            now.modules, now.step = plan.idle_modules, plan.end
        else:
            now.modules, now.step = plan.modules, plan.first
            if plan.batch is not None and plan.batch.is_ready():
                now.batch, now.held, now.times = plan.batch, [], []
        thread.now = now
        return now

    def _end_by_plan(self, now: Replay, error: BaseException | None) -> bool:
        thread = self._thread
        thread.now = None
        run, held = now.run, now.held
        now.run = now.held = None
        thread.spare_now = now
        if run is None:
            return False
        if error is None and now.step is not now.plan.end and self._open:
            run.fail(self._broken(now.course, f"{call_name(now.step)!r} was not called"))
        elif held:
            try:
                now.batch(run, held, now.times)
            except BrokenPromiseError as broken:
                now.course.forget()
                run.fail(broken)
        return self._direct.end(run, error)

    def _end(self, mode: OpMode, error: BaseException | None) -> bool:
        """The end of a pass that ran eagerly."""
        thread = self._thread
        course, lesson = thread.course, thread.lesson
        thread.course = thread.lesson = None
        if course is not None and error is None and mode.run.error is None:
            self._learn(course, lesson, mode)
        return super()._end(mode, error)

    def _learn(self, course: Route, lesson: WarmupPass | None, mode: OpMode) -> None:
        final = mode.node
        if self._table.moved:
            self._courses.clear()
            return
        if course.last is not final:
            if course.last is not None and start_of(course.last) is not start_of(final):  # the trie has been made anew
                course.forget()
            course.tries += 1
            if course.last is not None and (course.plan is not None or course.tries > MAX_WARMUP_PASSES):
                mode.run.fail(self._broken(course, first_difference(course.last, final)))
                return
            course.last = final
            course.lessons = Warmup()
            if lesson is not None:
                course.lessons.add(lesson)
            return
        if lesson is not None:
            course.lessons.add(lesson)
            course.plan = Schedule(final, course.lessons, self._idle, self._batch)
        assert course.plan is not None
        course.left = 0 if course.plan.whole else self._check_every

    def _step_aside(
        self,
        now: Replay,
        eager: Call,
        call: Call | None,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A call in a pass by plan that is not as simple as most are."""
        kind = now.modules.get(id(module))
        # Autograd runs a part of the forward pass again, or the module is one event, or nothing is recorded.
        if graph_task_id() != -1 or kind == HIDDEN or now.run is None:
            return self._thread.mute(_plain, (call, module, args, kwargs), {})
        if kind is None:
            if not (self._table.known.get(id(module)) or self._table.find_late(module)):
                return self._call_stranger(call, module, args, kwargs)
            idle = now.modules is now.plan.idle_modules
            now.plan.look_again()
            now.modules = now.plan.idle_modules if idle else now.plan.modules
            kind = now.modules.get(id(module))
        step = now.step
        if kind is None or (kind == STEP and step.module is not module):
            self._refuse(now, module)
        if kind != STEP:
            return _plain(call, module, args, kwargs)
        if step.watched or (step.ops and _has_hooks(module)):
            return self._watch(now, eager, module, args, kwargs)
        now.step = step.after
        if step.takes_in:
            now.mode.run = now.run
            now.mode.feed_arguments(step.entered, args, kwargs)
        if step.hidden:
            out = self._thread.mute(_plain, (call, module, args, kwargs), {})
        else:
            out = _plain(call, module, args, kwargs)
        self._take(now, step, out)
        return out

    def _call_stranger(
        self, call: Call | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a module that belongs to no root."""
        if runs_compiled(module):
            return self._thread.mute(_plain, (call, module, args, kwargs), {})
        return _plain(call, module, args, kwargs)

    def _take(self, now: Replay, step: ScheduledCall, out: Any) -> None:
        """Feed the taps of what a module returned."""
        if type(out) is Tensor:
            for tap in step.taps:
                tap(now.run, out)
            return
        mode = now.mode
        mode.run = now.run
        found = dict(leaves(out)) if now.held is None else {}
        for _, path in (*step.ops, *step.outs):
            if path not in found:
                self._fail(now, f"{call_name(step)!r} returned no tensor" + (f" at {path!r}" if path else ""))
        for watch, path in step.ops:
            watch.inner(now.run, found[path])
        if step.outs and step.left is not None:
            mode.feed(step.left, found.items())

    def _watch(self, now: Replay, eager: Call, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one module call as the eager engine does."""
        step, thread, mode = now.step, self._thread, now.mode
        before = step.entered.parent
        assert before is not None
        now.step = step.after
        mode.begin(now.run, before)
        thread.now, thread.mode = None, mode
        if self._ops:
            mode.watch()
        try:
            out = eager(module, *args, **kwargs)
        finally:
            if self._ops:
                mode.unwatch()
            thread.now, thread.mode = now, None
            node = mode.node
        if node is not step.left:
            self._fail(now, first_difference(step.left or step.entered, node))
        return out

    def _refuse(self, now: Replay, module: nn.Module) -> NoReturn:
        known = self._table.known.get(id(module))
        called = known.name if known else type(module).__name__
        expected = "no more call was" if now.step is now.plan.end else f"that of {call_name(now.step)!r} was"
        self._fail(now, f"{called!r} was called, where {expected} expected")

    def _fail(self, now: Replay, what: str) -> NoReturn:
        error = self._broken(now.course, what)
        now.run.fail(error)
        raise error

    def _broken(self, course: Route, what: str) -> BrokenPromiseError:
        course.forget()
        return BrokenPromiseError(
            f"a pass of {course.called!r} ran other ops than the passes before it: {what}. engine='static' is the "
            "promise that every pass runs the same ops; use engine='eager' for this model"
        )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or any(GLOBAL_HOOKS))
