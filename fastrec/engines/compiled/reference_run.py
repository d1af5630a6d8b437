"""What a model runs, as the eager engine names it: one pass over copies, which leaves everything as it was.

    tracer = ReferenceTracer({"": model}, [], listener, watch)
    trace = tracer.trace(model, (x,), {})
    [event.position.label for event in trace.events]    # every event of the pass, with what it read and gave

A compiled graph has no sites, labels or module calls, only nodes that dynamo traced. To name them, the model is run
once without compiled code under the machinery of the eager engine, and the graph's nodes are aligned with what that
shows (see ``alignment``). What the pass may change is put back: buffers, attributes, gradients, random numbers. What
else it does, such as a print, happens once more.
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from types import FrameType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from fastrec._errors import UnsupportedModelError
from fastrec._torch.dynamo import not_compiling, original_function
from fastrec._torch.internals import no_function_modes, saved_tensors_hooks_error
from fastrec._torch.modes import unseen_by_dynamo
from fastrec._torch.state import attributes_restored, random_state_restored, restored
from fastrec._torch.tensors import itself
from fastrec._torch.trees import leaves
from fastrec.engines._protocol import BasicRun, PlannedTap, PlanningListener, Tap, WatchOptions
from fastrec.engines.eager.mode import OpMode, ThreadState
from fastrec.engines.eager.module_calls import COMPILED_CALLS, MODULE_CALLS
from fastrec.engines.eager.modules import ModuleRegistry
from fastrec.engines.eager.passes import EagerPasses
from fastrec.engines.eager.special import SpecialModules
from fastrec.engines.eager.tracing import TracingMode
from fastrec.events.position import Position
from fastrec.events.sites import Site

Caller = tuple[str, str]
"""A function that calls an op: its file and its name."""

# --- A trace --------------------------------------------------------------------------------------------------------


class ReferenceTrace(BasicRun):
    """The events of one pass in their order.

    ``arguments``, ``random_state`` and ``caller`` are those of the op that runs, for the event that it may become.
    """

    def __init__(self, ids: TensorIds) -> None:
        super().__init__()
        self.events: list[TraceEvent] = []
        self.ids = ids
        self.arguments: tuple[Any, ...] = ()
        self.random_state: Tensor | None = None
        self.caller: Caller | None = None

    def add(self, leaf: TraceLeaf, value: Tensor) -> None:
        """A leaf of a value appeared."""
        events = self.events
        if not events or events[-1].position is not leaf.position:
            event = TraceEvent(leaf.position, self.parents)
            if event.is_op:
                event.reads = tuple(self.ids.of(tensor) for _, tensor in leaves(self.arguments))
                event.constants = tuple(constants_in(self.arguments))
                event.draws = self.random_state is not None and not torch.equal(self.random_state, random_state())
                event.caller = self.caller
            events.append(event)
        events[-1].values.append(TraceValue(leaf, value, self.ids.of(value)))

    def inside_of(self, index: int) -> list[TraceEvent]:
        """The events inside of a composite, which come before it, those of composites inside of it included."""
        prefix = self.events[index].position.label.partition("[")[0] + "/"
        first = index
        while first and self.events[first - 1].position.label.startswith(prefix):
            first -= 1
        return self.events[first:index]


class TraceEvent:
    """One event: ``reads`` and ``constants`` are the tensors and the plain values that an op was given.

    An op that ``draws`` takes numbers from a generator. ``caller`` is the function that calls it.
    """

    __slots__ = ("caller", "constants", "draws", "parents", "position", "reads", "values")

    def __init__(self, position: Position, parents: tuple[str, ...] | None) -> None:
        self.position = position
        self.parents = parents
        self.values: list[TraceValue] = []
        self.reads: tuple[int, ...] = ()
        self.constants: tuple[Any, ...] = ()
        self.draws = False
        self.caller: Caller | None = None

    @property
    def is_op(self) -> bool:
        return self.position.site.kind == "op"


class TraceValue:
    """A tensor that appeared: where, which tensor it is, and what it looked like then."""

    __slots__ = ("dtype", "leaf", "requires_grad", "shape", "tensor_id")

    def __init__(self, leaf: TraceLeaf, value: Tensor, tensor_id: int) -> None:
        self.leaf = leaf
        self.tensor_id = tensor_id
        self.shape = tuple(value.shape)
        self.dtype = value.dtype
        self.requires_grad = value.requires_grad


_NOT_ASKED: Any = object()


class TraceLeaf:
    """Where one tensor of an event's value appears; the listener is asked for its tap when a graph may hold it."""

    __slots__ = ("_tap", "position", "site")

    def __init__(self, position: Position, site: Site) -> None:
        self.position = position
        self.site = site
        self._tap: PlannedTap[Any] | None = _NOT_ASKED

    def tap(self, listener: PlanningListener[Any]) -> PlannedTap[Any] | None:
        """What is fed with the values; None where nothing is kept."""
        if self._tap is _NOT_ASKED:
            self._tap = listener.tap(self.position, self.site)
        return self._tap

    def __call__(self, run: ReferenceTrace, value: Tensor) -> None:
        run.add(self, value)


class TensorIds:
    """A number for each tensor object as long as it lives; a copy of the user's tensor has the number of the original.

    ``id()`` alone would not do: the id of a tensor that is gone may be given to another one.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._last = 0

    def of(self, value: Tensor) -> int:
        """The number of a tensor, which gets one if it has none."""
        number = self.find(value)
        if number is None:
            self._last = number = self._last + 1
            self._numbers[id(value)] = weakref.ref(value), number
        return number

    def find(self, value: Any) -> int | None:
        """The number of a tensor that has one."""
        reference, number = self._numbers.get(id(value), (None, None))
        return number if reference is not None and reference() is value else None

    def identify(self, value: Tensor, original: Tensor) -> None:
        """Let a tensor have the number of another one."""
        self._numbers[id(value)] = weakref.ref(value), self.of(original)


def constants_in(value: Any) -> Iterable[Any]:
    """The numbers, strings and dtypes in the arguments of an op."""
    if isinstance(value, bool | int | float | str | torch.dtype):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from constants_in(item)
    elif isinstance(value, Mapping):
        yield from constants_in(tuple(value.values()))
    elif isinstance(value, slice):
        yield from constants_in((value.start, value.stop, value.step))


def random_state() -> Tensor:
    """The state of the generators that ops draw from."""
    with no_function_modes():
        states = [torch.default_generator.get_state()]
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            states += [generator.get_state() for generator in torch.cuda.default_generators]
        return torch.cat(states)


# --- Making one -----------------------------------------------------------------------------------------------------


class ReferenceTracer:
    """Runs a model for a trace.

    Arguments:
        roots: the modules by address.
        objects: other objects whose attributes a pass may change.
        listener: says whether something inside of a fused module may be kept.
        watch: what is an event; ops are.
    """

    def __init__(
        self,
        roots: Mapping[str, nn.Module],
        objects: Iterable[Any],
        listener: PlanningListener[Any],
        watch: WatchOptions,
    ) -> None:
        self.registry = ModuleRegistry(roots)
        self._modules = list(dict.fromkeys(module for root in roots.values() for module in root.modules()))
        self._objects = list(objects)
        self._collector = _Collector()
        # A warning would tell of what an eager recording changes, and this one changes nothing that anybody sees.
        special = SpecialModules(
            self.registry, listener.may_keep, sees_ops=True, allow_unfused=True, warn=lambda *args: None
        )
        make_mode = partial(_make_mode, self._collector, watch.parents)
        self._passes = EagerPasses(self.registry, special, self._collector, watch._replace(ops=True), make_mode)

    def called(self) -> set[str]:
        """The addresses of the modules that were called."""
        return self._passes.called()

    def trace(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ReferenceTrace:
        """What a call of a root does."""
        ids = TensorIds()
        trace = self._collector.trace = ReferenceTrace(ids)
        unrecorded = call
        for switch in (*COMPILED_CALLS.switches(), *MODULE_CALLS.switches()):
            unrecorded = partial(switch.run_unrecorded, unrecorded)
        with ExitStack() as stack:
            if saved_tensors_hooks_error() is None:
                # Otherwise whoever saves tensors for the user's pass (checkpointing) would get those of this one too.
                stack.enter_context(saved_tensors_hooks(itself, itself))
            stack.enter_context(random_state_restored())
            stack.enter_context(attributes_restored(self._objects))
            stack.enter_context(restored(self._modules))
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(not_compiling())
            for module in self._modules:
                _uncompile(module)
            copied_args, copied_kwargs = self._copied((args, dict(kwargs)), ids)
            MODULE_CALLS.add(self._passes.wrapper, self._passes.thread, self._passes.registry.classes())
            stack.callback(MODULE_CALLS.remove, self._passes.wrapper)
            unrecorded(*copied_args, **copied_kwargs)
        return trace

    def trace_region(
        self, name: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ReferenceTrace:
        """What a call of a function does."""

        def run_region(*args: Any, **kwargs: Any) -> None:
            mode = self._passes.enter_region(name)
            assert mode is not None
            try:
                call(*args, **kwargs)
            finally:
                self._passes.leave_region(mode, None)

        return self.trace(run_region, args, kwargs)

    def _copied(self, arguments: Any, ids: TensorIds) -> Any:
        """Arguments that the pass may write to; parameters and modules are not copied."""
        memo = {id(module): module for module in self._modules}
        parameters = (parameter for module in self._modules for parameter in module.parameters())
        memo |= {id(parameter): parameter for parameter in parameters}  # type: ignore[misc]
        with _CopiesTensors(ids):
            try:
                return copy.deepcopy(arguments, memo)
            # An argument may be anything, and refuse to be copied by any exception.
            except Exception as error:
                raise UnsupportedModelError(
                    f"the compiled engine runs the model once over copies of its arguments, to learn the names of "
                    f"what it computes, and one of them can't be copied ({type(error).__name__}: {error}); use "
                    "engine='eager' with the model that was compiled (model._orig_mod)"
                ) from error


def _make_mode(collector: _Collector, parents: bool, thread: ThreadState) -> OpMode:
    return ReferenceMode(collector, thread, parents=parents)


class _Collector:
    """A listener that takes everything in."""

    def __init__(self) -> None:
        self.trace: ReferenceTrace | None = None

    def tap(self, position: Position, site: Site) -> Tap[ReferenceTrace]:
        return TraceLeaf(position, site)

    def may_keep(self, site: Site) -> bool:
        return True

    def begin(self, entry: str) -> ReferenceTrace | None:
        return self.trace

    def end(self, run: ReferenceTrace, error: BaseException | None) -> bool:
        return False


@unseen_by_dynamo
class ReferenceMode(TracingMode):
    """A mode that also tells what each op was given, whether it draws random numbers, and who called it."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        trace: ReferenceTrace = self.run
        outer = trace.arguments, trace.random_state, trace.caller
        trace.arguments, trace.random_state, trace.caller = (args, kwargs or {}), random_state(), _caller_of(func)
        try:
            return super().__torch_function__(func, types, args, kwargs)
        finally:
            trace.arguments, trace.random_state, trace.caller = outer


_OVERRIDES_FILE = torch.overrides.__file__


def _caller_of(func: Any) -> Caller | None:
    """The function that called an op whose mode has just been called."""
    frame: FrameType | None = sys._getframe(2)
    # Between the op and its mode are frames of torch's dispatch, and for a Python function its own frame.
    while frame and frame.f_code.co_filename == _OVERRIDES_FILE:
        frame = frame.f_back
    if frame and frame.f_code is getattr(func, "__code__", None):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_code.co_name) if frame else None


class _CopiesTensors(TorchFunctionMode):
    """Copies tensors for ``copy.deepcopy``, which refuses those that have a history."""

    def __init__(self, ids: TensorIds) -> None:
        super().__init__()
        self._ids = ids

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        value, memo = args
        if id(value) not in memo:
            clone = value.detach().clone().requires_grad_(value.requires_grad)
            memo[id(value)] = clone
            self._ids.identify(clone, value)
        return memo[id(value)]


def _uncompile(module: nn.Module) -> None:
    """Let a module run as if it had not been compiled in place: otherwise it would be one event."""
    if module._compiled_call_impl is not None:
        module.__dict__["_compiled_call_impl"] = None
    original = original_function(module.forward)
    if original is not None:
        is_own = "forward" in module.__dict__  # and not of its class
        module.__dict__["forward"] = original if is_own else MethodType(original, module)
