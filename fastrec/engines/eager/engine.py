"""The eager engine: any Python model, any control flow, every op.

    engine = EagerEngine(WatchOptions(parents=True))
    engine.open({"": model}, listener)
    model(x)
    engine.close()

It sees modules through a wrapper of ``nn.Module.__call__``, and ops through a function mode that the outermost recorded
call pushes in its thread. It does not see the ops inside of compiled code, of TorchScript, and of C++ extensions that
bypass torch's dispatch of Python functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic

from torch import nn

from fastrec.engines._protocol import WATCH_OPS, Listener, OpRunner, PassFilter, ResultT, RunT, WatchOptions
from fastrec.engines.eager.mode import OpMode, ThreadState
from fastrec.engines.eager.module_calls import MODULE_CALLS
from fastrec.engines.eager.modules import ModuleRegistry
from fastrec.engines.eager.passes import EagerPasses
from fastrec.engines.eager.special import SpecialModules, WarnOnce
from fastrec.engines.eager.supported import check_roots
from fastrec.engines.eager.threads import THREAD_STARTS
from fastrec.engines.eager.tracing import OpRunnerMode, TracingMode
from fastrec.events.sites import Frame


class EagerEngine(Generic[RunT]):
    """Watches every call of the roots, and every op that runs inside of them.

    Arguments:
        watch: what is an event.
        op_runner: the listener, where it is one that runs the ops itself.
        pass_filter: whether something of a pass that begins could be kept; the others are not watched.
        allow_unfused: whether a module may compute something else than with its fused kernel where its inside is kept.
    """

    is_compiled = False

    def __init__(
        self,
        watch: WatchOptions = WATCH_OPS,
        *,
        op_runner: OpRunner[RunT] | None = None,
        pass_filter: PassFilter[RunT] | None = None,
        allow_unfused: bool = False,
    ) -> None:
        self._watch = watch
        self._allow_unfused = allow_unfused
        self._op_runner = op_runner
        self._pass_filter = pass_filter

    def open(self, roots: Mapping[str, nn.Module], listener: Listener[RunT]) -> None:
        """Begin to watch the roots, in all threads."""
        self._passes = eager_passes(
            roots,
            listener,
            self._watch,
            self._pass_filter,
            op_runner=self._op_runner,
            allow_unfused=self._allow_unfused,
        )
        MODULE_CALLS.add(self._passes.wrapper, self._passes.thread, self._passes.registry.classes())
        THREAD_STARTS.add(self._passes.on_thread_start)

    def close(self) -> None:
        """Stop watching; passes that still run in other threads are no longer seen."""
        THREAD_STARTS.remove(self._passes.on_thread_start)
        MODULE_CALLS.remove(self._passes.wrapper)
        self._passes.close()

    def enter_region(self, name: str) -> OpMode | None:
        """Make what this thread runs from now on one pass; None where the listener does not record it."""
        return self._passes.enter_region(name)

    def leave_region(self, region: object, error: BaseException | None) -> bool:
        """End the region's pass; whether the listener takes the exception as its own."""
        assert isinstance(region, OpMode)
        return self._passes.leave_region(region, error)

    def unseen(self, function: Callable[..., ResultT], *args: object) -> ResultT:
        """Run a function in this thread without recording anything that it calls, by other recorders neither."""
        return MODULE_CALLS.run_unrecorded(function, *args)

    def frames(self) -> list[Frame]:
        """The modules that it knows, for messages."""
        return self._passes.registry.frames()

    def called(self) -> set[str]:
        """The addresses of the modules that were called, for messages."""
        return self._passes.called()


def eager_passes(
    roots: Mapping[str, nn.Module],
    listener: Listener[RunT],
    watch: WatchOptions,
    pass_filter: PassFilter[RunT] | None = None,
    *,
    op_runner: OpRunner[RunT] | None = None,
    allow_unfused: bool = False,
) -> EagerPasses:
    """What runs the passes of these roots; UnsupportedModelError for a root that can't be recorded."""

    def make_mode(thread: ThreadState) -> OpMode:
        if op_runner is not None:
            return OpRunnerMode(op_runner, thread)
        if watch.sources or watch.parents:
            return TracingMode(listener, thread, parents=watch.parents)
        return OpMode(listener, thread, may_suspend=watch.sees_ops)

    check_roots(roots)
    registry = ModuleRegistry(roots)
    warn = WarnOnce(stacklevel=6)
    special = SpecialModules(
        registry, listener.may_keep, sees_ops=watch.sees_ops, allow_unfused=allow_unfused, warn=warn
    )
    return EagerPasses(registry, special, listener, watch, make_mode, pass_filter)
