"""The compiled engine: what ``torch.compile`` compiled goes on running compiled, and hands over what is kept.

    model = torch.compile(policy)
    engine = CompiledEngine(make_batch=make_batch)
    engine.open({"": model}, listener)
    model(x)  # compiled once more: kept values are further outputs of its graphs, which the caller does not see

During the session a root runs through a ``torch.compile`` of ours, with the user's options. Its backend (``_backend``)
has each graph aligned with a reference trace of the model, adds the kept values to the outputs, and hands the graph to
the user's own backend. What it gives to dynamo is ``run_graph``, which runs the compiled graph, feeds the taps, and
returns the model's own outputs.

In a pass, ``_call`` begins and ends, and ``run_graph`` runs in between, once per graph. Most compiled models have one
graph, whose values are fed in one batch; the other ways are for graph breaks, and for what has not been seen before.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Generic
from weakref import ref

import torch
from torch import Tensor, fx, nn

from fastrec._errors import FastrecError, FastrecWarning, SessionError, UnsupportedModelError
from fastrec._torch.dynamo import keep_out_of_compiling
from fastrec._torch.internals import functorch_level, graph_task_id
from fastrec._torch.tensors import clone_like
from fastrec.engines._protocol import (
    WATCH_OPS,
    MakePassBatch,
    PassBatch,
    PassFilter,
    PlanningListener,
    ResultT,
    RunT,
    WatchOptions,
)
from fastrec.engines.compiled.graphs import CapturedGraph
from fastrec.engines.compiled.roots import Arguments, Code, CompiledRoot, CompileGraph, Roots, compiled_roots
from fastrec.engines.compiled.routes import GraphRoute, GraphStep, GraphTransition, Links
from fastrec.engines.eager.module_calls import COMPILED_CALLS, MODULE_CALLS, Call
from fastrec.events.sites import Frame

_grad_is_on = torch.is_grad_enabled


class CompiledEngine(Generic[RunT]):
    """Records roots that ``torch.compile`` compiled: modules, functions and methods.

    Arguments:
        watch: what is an event; ops always are.
        make_batch: makes taps that are fed together when a pass ends.
        pass_filter: whether something of a pass that begins could be kept; the others run the user's compiled code.
    """

    is_compiled = True

    def __init__(
        self,
        watch: WatchOptions = WATCH_OPS,
        *,
        make_batch: MakePassBatch[RunT],
        pass_filter: PassFilter[RunT] | None = None,
    ) -> None:
        self._watch = watch
        self._make_batch = make_batch
        self._pass_filter = pass_filter
        self._thread = _Thread()
        self._missing_sites: set[str] = set()

    def open(self, roots: Mapping[str, Any], listener: PlanningListener[RunT]) -> None:
        """Begin to record the roots, in all threads."""
        self._listener = listener
        self._roots = compiled_roots(roots, listener, self._watch)
        keep_out_of_compiling()
        for count, root in enumerate(self._roots):
            try:
                root.open(self._backend, self._call)
            except BaseException:
                for opened in self._roots[:count]:
                    opened.close()
                raise
        self._by_module = {id(root.module): root for root in self._roots if root.module is not None}
        if self._by_module:
            COMPILED_CALLS.add(self._wrapper, self._thread)

    def close(self) -> None:
        """Stop; the user's own compiled code runs again."""
        COMPILED_CALLS.remove(self._wrapper)
        for root in self._roots:
            root.close()

    def enter_region(self, name: str) -> None:
        """Refused: what runs outside of compiled code is not seen."""
        raise SessionError(
            f"region({name!r}): the compiled engine only sees compiled code; give the compiled function itself as a "
            "root, Recorder({'act': agent.act}, ...), or record the model that was compiled with engine='eager'"
        )

    def leave_region(self, region: object, error: BaseException | None) -> bool:
        """No region begins here."""
        return False

    def unseen(self, function: Callable[..., ResultT], *args: object) -> ResultT:
        """Run a function in this thread without recording anything that it calls, by other recorders neither."""
        call = partial(function, *args)
        for switch in (self._thread, *COMPILED_CALLS.switches(), *MODULE_CALLS.switches()):
            call = partial(switch.run_unrecorded, call)
        return call()

    def frames(self) -> list[Frame]:
        """The modules that it knows, for messages."""
        return [frame for root in self._roots for frame in root.tracer.registry.frames()]

    def called(self) -> set[str]:
        """The addresses of the modules that were called, for messages."""
        return {address for root in self._roots for address in root.tracer.called()}

    # Passes.

    def _wrapper(self, call: Call | None) -> Call:
        """The wrapper of calls of compiled modules; ``call`` is what comes next."""
        assert call is not None
        roots, record = self._by_module, self._call

        def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            root = roots.get(id(module))
            if root is None:
                return call(module, *args, **kwargs)
            return record(root, root.own_code, (args, kwargs), ())

        return __call__

    def _call(self, root: CompiledRoot, own_code: Code, arguments: Arguments, wanting: Roots) -> Any:
        """A call of a root, which by itself would run ``own_code``; later recorders are ``wanting`` its values."""
        state, listener, pass_filter = self._thread.state, self._listener, self._pass_filter
        if state.recording_disabled or graph_task_id() != -1 or functorch_level() is not None:
            return self._call_unrecorded(root, own_code, arguments, wanting)
        run = listener.begin(root.entry)
        if run is None:
            return self._thread.run_unrecorded(root.call, own_code, arguments, wanting)
        current: _Pass | None = None
        state.recording_disabled = True  # what it calls is no pass of its own
        try:
            if pass_filter is None or pass_filter(run):
                state.current = current = _Pass(run, root, arguments)
                if wanting or root.previous is not None:
                    out = root.call(own_code, arguments, (*wanting, root))
                else:
                    root.last_code = root.recorded if _grad_is_on() else None
                    out = root.run(root.recorded, own_code, arguments)
                values, current.values = current.values, None
                if values is None:
                    self._finish(current)
                else:  # a pass that runs this graph alone: the batch is all that there is to do
                    current.batch(run, values, [perf_counter()] * len(values))
            else:
                root.last_code = None
                out = root.call(own_code, arguments, wanting)
        except BaseException as error:
            state.recording_disabled, state.current = False, None
            if not self._end_badly(run, current, error):
                raise
            return None
        state.recording_disabled, state.current = False, None
        listener.end(run, None)
        return out

    def _call_unrecorded(self, root: CompiledRoot, own_code: Code, arguments: Arguments, wanting: Roots) -> Any:
        """A call that is no pass: inside of another one, by autograd, or in a functorch transform."""
        if root.last_code is not None and graph_task_id() != -1:
            # What checkpointing runs again has to save the same tensors as before, so it has to be the same code.
            return self._thread.run_unrecorded(root.run, root.last_code, own_code, arguments)
        return self._thread.run_unrecorded(root.call, own_code, arguments, wanting)

    def _end_badly(self, run: RunT, current: _Pass | None, raised: BaseException) -> bool:
        """The end of a pass that an exception left; True: its caller gets None."""
        error = (current and current.refusal) or raised
        try:
            if current is not None and current.values is not None:
                self._feed_held(current)
        finally:
            is_halted = self._listener.end(run, error)
        if not is_halted and error is not raised:
            raise error from None
        return is_halted

    def _finish(self, current: _Pass) -> None:
        """The call returned."""
        step = current.step
        if step.end_feeds is None:
            route = self._route(current)
            step.end_feeds = route.end()
            self._warn_missing(route.missing(), has_run=bool(current.graphs))
        for tap, position in step.end_feeds:
            tap(current.run, current.out[position])
        if len(current.graphs) == 1 and not self._watch.parents:
            ((graph, transition),) = current.graphs
            if not transition.has_asked_for_batch:
                transition.ask_for_batch(graph.outputs.n_own, self._make_batch)

    # Graphs.

    def _backend(
        self, root: CompiledRoot, compile_graph: CompileGraph, module: fx.GraphModule, inputs: Sequence[Any]
    ) -> Callable[..., Any]:
        """Compiles a graph: by the user's backend, after the kept values were added to the outputs."""
        thread = self._thread
        current = thread.state.current
        if current is None or current.root is not root:
            return self._unknown_graph(root, compile_graph(module, inputs))
        graph = CapturedGraph(module, inputs)
        try:
            transition = self._route(current).advance(graph, inputs, current.links(inputs))
        except FastrecError as error:
            current.refusal = error  # dynamo wraps what a backend raises
            raise
        current.step.transitions[graph] = transition
        graph.finish(module)
        graph.compile(compile_graph, module, inputs)
        root.graphs.append(graph)
        n_own = graph.outputs.n_own

        def run_graph(*inputs: Any) -> Any:
            out = graph.compiled(*inputs) if graph.gradient_paths is None else graph.run(inputs)
            own_outputs = out[:n_own]
            current = thread.state.current
            if current is None:
                return own_outputs
            transition = current.step.transitions.get(graph)
            if (
                transition is not None
                and transition.batch is not None
                and not current.graphs
                and transition.batch.is_ready()
            ):
                # The values are held until the pass ends. The model's own outputs belong to whoever called it by then,
                # so of those a copy is held.
                if transition.batch_slice is not None:
                    current.values = [*out[transition.batch_slice]]
                else:
                    positions = transition.batch_positions
                    current.values = [out[i] if i >= n_own else clone_like(out[i]) for i in positions]
                current.batch = transition.batch
                current.step = transition.next_step
                current.graphs.append((graph, transition))
            else:
                self._graph_ran(current, graph, inputs, out)
            current.own_outputs = own_outputs
            return own_outputs

        return run_graph

    def _unknown_graph(self, root: CompiledRoot, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """A graph that was compiled outside of a pass, when autograd ran a part of one again: it has no names."""

        def run_graph(*inputs: Any) -> Any:
            current = self._thread.state.current
            if current is not None and current.root is root:
                current.refusal = UnsupportedModelError(
                    f"{root.description} runs code that was compiled while autograd ran a part of it again, whose "
                    "values are not known; record the model that was compiled with engine='eager'"
                )
                raise current.refusal
            return compiled(*inputs)

        return run_graph

    def _graph_ran(self, current: _Pass, graph: CapturedGraph, inputs: Sequence[Any], out: Sequence[Any]) -> None:
        """A graph has run whose values are not held for a batch."""
        if current.values is not None:  # this pass goes on where others ended
            self._feed_held(current)
        if current.graphs:
            current.release_outputs()
        transition = current.step.transitions.get(graph)
        if transition is None:
            transition = self._route(current).advance(graph, inputs, current.links(inputs))
            current.step.transitions[graph] = transition
        run = current.run
        for position in transition.differentiable:
            out[position].requires_grad_()
        for is_from_graph_before, (tap, position) in transition.early_feeds:
            tap(run, (current.out if is_from_graph_before else out)[position])
        for tap, position in transition.feeds:
            tap(run, out[position])
        current.step = transition.next_step
        current.out = out
        current.graphs.append((graph, transition))

    def _feed_held(self, current: _Pass) -> None:
        """Feed one by one what was held for the end of the pass."""
        values, current.values = current.values or [], None
        ((_, transition),) = current.graphs
        out = dict(zip(transition.batch_positions, values, strict=True))
        for _, (tap, position) in transition.early_feeds:
            tap(current.run, out[position])
        for tap, position in transition.feeds:
            tap(current.run, out[position])
        current.out = out

    def _route(self, current: _Pass) -> GraphRoute:
        """How far the pass has come in its reference trace, which is made now if there is none."""
        root, route = current.root, current.route
        # Torch may give a graph up after its backend has seen it, and compile it anew; then the route has gone too far.
        if route is None or route.n_graphs != len(current.graphs):
            trace = root.trace(*current.arguments) if route is None else route.trace
            route = current.route = GraphRoute(trace, self._listener, root.tracer.registry.by_id)
            for graph, transition in current.graphs:
                if not route.advance(graph, graph.inputs, transition.links).feeds_as(transition):
                    raise UnsupportedModelError(
                        f"{root.description} took another way through its compiled code than a run of it without "
                        "compiled code, so its records could be named wrong; record the model that was compiled with "
                        "engine='eager'"
                    )
        return route

    def _warn_missing(self, sites: list[str], *, has_run: bool) -> None:
        new_sites = [site for site in sites if site not in self._missing_sites]
        if new_sites:
            self._missing_sites.update(new_sites)
            names = ", ".join(map(repr, new_sites[:5]))
            names += f" and {len(new_sites) - 5} more" if len(new_sites) > 5 else ""
            reason = "it falls between the compiled graphs, or nobody uses its value"
            warnings.warn(
                f"{names}: not recorded, because {reason if has_run else 'no compiled graph ran'}; record the model "
                "that was compiled with engine='eager' to see it",
                FastrecWarning,
                stacklevel=5,
            )


class _Pass:
    """A pass while it runs.

    ``graphs`` are those that have run, ``out`` is what the last one gave by position (its own outputs and the added
    ones), ``own_outputs`` what it returned to the model. ``values`` are held for the ``batch`` until the pass ends;
    None where taps are fed at once. ``refusal`` is what a backend raised.
    """

    # Defaults in the class, because an object is made in every pass and most of these stay as they are.
    out: Any = ()
    own_outputs: Sequence[Any] = ()
    earlier_outputs: Sequence[list[Any]] = ()
    values: list[Tensor] | None = None
    batch: PassBatch[Any]
    route: GraphRoute | None = None
    refusal: FastrecError | None = None

    def __init__(self, run: Any, root: CompiledRoot, arguments: Arguments) -> None:
        self.run = run
        self.root = root
        self.arguments = arguments
        self.step: GraphStep = root.start
        self.graphs: list[tuple[CapturedGraph, GraphTransition]] = []

    def release_outputs(self) -> None:
        """Another graph has run: from now on hold what the last one returned only as long as the model does."""
        references = [ref(value) if isinstance(value, Tensor) else None for value in self.own_outputs]
        self.earlier_outputs = [*self.earlier_outputs, references]
        self.own_outputs = ()

    def links(self, inputs: Sequence[Any]) -> Links:
        """Which of the tensors that a graph is given are which outputs of the graphs before."""
        sources = {id(value): (len(self.graphs) - 1, position) for position, value in enumerate(self.own_outputs)}
        for number, references in enumerate(self.earlier_outputs):
            for position, reference in enumerate(references):
                value = reference and reference()
                if value is not None:
                    sources.setdefault(id(value), (number, position))
        return {
            i: sources[id(value)]
            for i, value in enumerate(inputs)
            if isinstance(value, Tensor) and id(value) in sources
        }


class _ThreadState:
    """What a thread is doing: a pass, or a call that is not recorded."""

    __slots__ = ("current", "recording_disabled")

    def __init__(self) -> None:
        self.current: _Pass | None = None
        self.recording_disabled = False


class _Thread(threading.local):
    """The state of each thread; an object of its own, because a thread-local is slower to read than an attribute."""

    def __init__(self) -> None:
        self.state = _ThreadState()

    def run_unrecorded(self, function: Callable[..., ResultT], /, *args: Any, **kwargs: Any) -> ResultT:
        """Run a function without recording anything that it calls."""
        state = self.state
        current, recording_disabled = state.current, state.recording_disabled
        state.current, state.recording_disabled = None, True
        try:
            return function(*args, **kwargs)
        finally:
            state.current, state.recording_disabled = current, recording_disabled
