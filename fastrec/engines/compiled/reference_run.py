"""What a model runs, as the eager engine names it: one pass over copies, that leaves everything as it was."""

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

from fastrec._errors import FastrecWarning, UnsupportedModelError
from fastrec._torch.dynamo import not_compiling
from fastrec._torch.internals import no_function_modes, saved_tensors_hooks_error
from fastrec._torch.modes import unseen_by_dynamo
from fastrec._torch.state import attributes_restored, random_state_restored, restored
from fastrec._torch.trees import leaves
from fastrec.engines._protocol import PlannedTap, PlanningListener, Tap
from fastrec.engines.eager.engine import EagerEngine
from fastrec.engines.eager.mode import OpMode
from fastrec.engines.eager.module_calls import COMPILED_CALLS, MODULE_CALLS
from fastrec.engines.eager.modules import ModuleRegistry
from fastrec.engines.eager.supported import InnerSites
from fastrec.engines.eager.tracing import TracingMode
from fastrec.events.position import Position
from fastrec.events.sites import Site

UNASKED: Any = object()

Caller = tuple[str, str]

_OVERRIDES = torch.overrides.__file__


class TensorIds:
    """A number for each tensor object, as long as it lives; copies of the user's tensors have that of the original."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._next = 0

    def of(self, value: Tensor) -> int:
        """The number of a tensor."""
        known = self.known(value)
        if known is not None:
            return known
        self._next += 1
        self._known[id(value)] = weakref.ref(value), self._next
        return self._next

    def known(self, value: Any) -> int | None:
        """The number of a tensor that has one."""
        known = self._known.get(id(value))
        return known[1] if known is not None and known[0]() is value else None

    def same(self, value: Tensor, other: Tensor) -> None:
        """Let a tensor have the number of another one."""
        self._known[id(value)] = weakref.ref(value), self.of(other)


class TraceLeaf:
    """The place of one tensor of an event's value; the listener is asked for its tap when a graph may hold it."""

    __slots__ = ("_tap", "place", "site")

    def __init__(self, place: Position, site: Site) -> None:
        self.place = place
        self.site = site
        self._tap: PlannedTap | None = UNASKED

    def tap(self, listener: PlanningListener) -> PlannedTap | None:
        """Who is fed with the values, None where nothing is kept."""
        if self._tap is UNASKED:
            self._tap = listener.tap(self.place, self.site)
        return self._tap

    def __call__(self, run: ReferenceTrace, value: Tensor) -> None:
        run.add(self, value)


class TraceValue:
    """A tensor that appeared in a lesson: where, which object, and what it looked like then."""

    __slots__ = ("dtype", "leaf", "requires_grad", "shape", "token")

    def __init__(self, leaf: TraceLeaf, value: Tensor, token: int) -> None:
        self.leaf = leaf
        self.token = token
        self.shape = tuple(value.shape)
        self.dtype = value.dtype
        self.requires_grad = value.requires_grad


class TraceEvent:
    """One event of a lesson; ``reads`` and ``constants`` are the tensors and the plain values that an op was given.

    An op that ``draws`` takes numbers from a generator. ``caller`` is the function that calls it: a file and a name.
    """

    __slots__ = ("caller", "constants", "draws", "parents", "place", "reads", "values")

    def __init__(self, place: Position, parents: tuple[str, ...] | None) -> None:
        self.place = place
        self.parents = parents
        self.values: list[TraceValue] = []
        self.reads: tuple[int, ...] = ()
        self.constants: tuple[Any, ...] = ()
        self.draws = False
        self.caller: Caller | None = None

    @property
    def is_op(self) -> bool:
        return self.place.site.kind == "op"


class ReferenceTrace:
    """The events of one pass in their order."""

    def __init__(self, tokens: TensorIds) -> None:
        self.events: list[TraceEvent] = []
        self.tokens = tokens
        self.parents: tuple[str, ...] | None = None
        self.given: tuple[Any, ...] = ()  # the arguments of the op that runs
        self.random: Tensor | None = None  # the random state when it began
        self.caller: Caller | None = None

    def inside_of(self, index: int) -> list[TraceEvent]:
        """The events inside of a composite, which come before it: those of its own inside come in there too."""
        prefix = self.events[index].place.label.partition("[")[0] + "/"
        first = index
        while first and self.events[first - 1].place.label.startswith(prefix):
            first -= 1
        return self.events[first:index]

    def add(self, leaf: TraceLeaf, value: Tensor) -> None:
        """A leaf of a value appeared."""
        events = self.events
        if not events or events[-1].place is not leaf.place:
            event = TraceEvent(leaf.place, self.parents)
            if event.is_op:
                event.reads = tuple(self.tokens.of(read) for _, read in leaves(self.given))
                event.constants = tuple(constants_in(self.given))
                event.draws = self.random is not None and not torch.equal(self.random, random_state())
                event.caller = self.caller
            events.append(event)
        events[-1].values.append(TraceValue(leaf, value, self.tokens.of(value)))


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


def _caller_of(func: Any) -> Caller | None:
    """The function that called an op whose mode has just been called."""
    frame: FrameType | None = sys._getframe(2)
    while frame and frame.f_code.co_filename == _OVERRIDES:
        frame = frame.f_back
    if frame and frame.f_code is getattr(func, "__code__", None):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_code.co_name) if frame else None


def random_state() -> Tensor:
    """The state of the generators that ops draw from."""
    with no_function_modes():
        states = [torch.default_generator.get_state()]
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            states += [generator.get_state() for generator in torch.cuda.default_generators]
        return torch.cat(states)


class _Collector:
    """A listener that takes everything in."""

    def __init__(self) -> None:
        self.lesson: ReferenceTrace | None = None

    def tap(self, place: Position, site: Site) -> Tap:
        return TraceLeaf(place, site)

    def may_keep(self, site: Site) -> bool:
        return True

    def begin(self, entry: str) -> ReferenceTrace | None:
        return self.lesson

    def end(self, run: ReferenceTrace, error: BaseException | None) -> bool:
        return False


@unseen_by_dynamo
class ReferenceMode(TracingMode):
    """A mode that also tells what each op was given."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        lesson: ReferenceTrace = self.run
        before = lesson.given, lesson.random, lesson.caller
        lesson.given, lesson.random, lesson.caller = (args, kwargs or {}), random_state(), _caller_of(func)
        try:
            return super().__torch_function__(func, types, args, kwargs)
        finally:
            lesson.given, lesson.random, lesson.caller = before


class ReferenceTracer(EagerEngine):
    """The eager engine, asked for one pass at a time, of which it tells everything.

    Arguments:
        roots: the modules by address.
        objects: others whose attributes a pass may change.
        session: who says whether something inside of a fused module may be kept.
        sources: inputs and buffers that are read are events.
        parents: follow which event each value came from.
    """

    def __init__(
        self,
        roots: Mapping[str, nn.Module],
        objects: Iterable[Any],
        session: PlanningListener,
        *,
        sources: bool,
        parents: bool,
    ) -> None:
        super().__init__(ops=True, sources=sources, parents=parents)
        self._modules = list(dict.fromkeys(module for root in roots.values() for module in root.modules()))
        self._objects = [*self._modules, *objects]
        self._collector = _Collector()
        self._listener = self._collector
        self._table = ModuleRegistry(roots)
        self._inside = InnerSites(self._table, session)
        self._layer = self._make_layer

    @property
    def table(self) -> ModuleRegistry:
        """The modules by identity."""
        return self._table

    def learn(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ReferenceTrace:
        """What a call of a root does, told by a run of it over copies."""
        return self._learn(call, args, kwargs)

    def learn_region(
        self, name: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ReferenceTrace:
        """What a call of a function does."""

        def region(*args: Any, **kwargs: Any) -> None:
            token = self.enter_region(name)
            assert token is not None
            try:
                call(*args, **kwargs)
            finally:
                self.leave_region(token, None)

        return self._learn(region, args, kwargs)

    def _learn(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ReferenceTrace:
        tokens = TensorIds()
        lesson = self._collector.lesson = ReferenceTrace(tokens)
        unseen = call
        for thread in (*COMPILED_CALLS.threads(), *MODULE_CALLS.threads()):
            unseen = partial(_muted, thread, unseen)
        with ExitStack() as stack:
            if saved_tensors_hooks_error() is None:
                # Else whoever saves tensors for the pass (checkpointing) would get those of the lesson too.
                stack.enter_context(saved_tensors_hooks(_itself, _itself))
            stack.enter_context(random_state_restored())
            stack.enter_context(attributes_restored(self._objects))
            stack.enter_context(restored(self._modules))
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(not_compiling())
            for module in self._modules:
                _uncompile(module)
            copied_args, copied_kwargs = self._copied((args, dict(kwargs)), tokens)
            MODULE_CALLS.add(self._layer, self._thread)
            stack.callback(MODULE_CALLS.remove, self._layer)
            unseen(*copied_args, **copied_kwargs)
        return lesson

    def _copied(self, given: Any, tokens: TensorIds) -> Any:
        """Arguments that the pass may write into, parameters and modules excepted."""
        memo = {id(module): module for module in self._modules}
        memo |= {id(parameter): parameter for module in self._modules for parameter in module.parameters()}  # type: ignore[misc]
        with _CopiesTensors(tokens):
            try:
                return copy.deepcopy(given, memo)
            # An argument may be anything, and say so in any way.
            except Exception as error:
                raise UnsupportedModelError(
                    f"the compiled engine runs the model once over copies of its arguments, to learn the names of "
                    f"what it computes, and one of them can't be copied ({type(error).__name__}: {error}); use "
                    "engine='eager' with the model that was compiled (model._orig_mod)"
                ) from error

    def _make_mode(self) -> OpMode:
        return ReferenceMode(self._listener, self._thread, parents=self._parents)

    def _warn(self, key: str, message: str, category: type[FastrecWarning] = FastrecWarning) -> None:
        pass  # it warns of what an eager recording would change


class _CopiesTensors(TorchFunctionMode):
    """Copies tensors for ``copy.deepcopy``, which refuses those that have a history."""

    def __init__(self, tokens: TensorIds) -> None:
        super().__init__()
        self._tokens = tokens

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        value, memo = args
        if id(value) not in memo:
            clone = value.detach().clone().requires_grad_(value.requires_grad)
            memo[id(value)] = clone
            self._tokens.same(clone, value)
        return memo[id(value)]


def _itself(value: Tensor) -> Tensor:
    return value


def _uncompile(module: nn.Module) -> None:
    """Let a module run as if it had not been compiled in place: else it would be one event."""
    if module._compiled_call_impl is not None:
        module.__dict__["_compiled_call_impl"] = None
    original = getattr(module.forward, "_torchdynamo_orig_callable", None)
    if original is not None:
        own = "forward" in module.__dict__  # and not of its class
        module.__dict__["forward"] = original if own else MethodType(original, module)


def _muted(thread: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return thread.mute(function, args, kwargs)
