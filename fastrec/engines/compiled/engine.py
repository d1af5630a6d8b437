"""The compiled engine: what ``torch.compile`` compiled goes on running compiled, and hands over what is kept.

During the session a root runs through a ``torch.compile`` of ours, with the user's options. Its backend adds the kept
values to the outputs of each graph, gives the graph to the user's own backend, and takes the added outputs off each
run. What the nodes of a graph are called is learned by one run of the model over copies, under the eager engine.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any
from weakref import ref

import torch
from torch import Tensor, fx, nn

from fastrec._errors import FastrecError, FastrecWarning, SessionError, UnsupportedModelError
from fastrec._torch.internals import functorch_level, graph_task_id
from fastrec._torch.tensors import clone_like
from fastrec._torch.wrappers import keep_out_of_compiling
from fastrec.engines._protocol import MakePassBatch, PassBatch, PassFilter, PlanningListener
from fastrec.engines.compiled.graphs import CapturedGraph, GraphRoute, GraphStep, GraphTransition, Links
from fastrec.engines.compiled.roots import Arguments, CompiledRoot, CompileGraph, Roots, compiled_roots
from fastrec.engines.eager.module_calls import COMPILED_CALLS, MODULE_CALLS, Call
from fastrec.events.sites import Frame

_grad_is_on = torch.is_grad_enabled


class CompiledEngine:
    """Records roots that ``torch.compile`` compiled: modules, functions and methods.

    Arguments:
        batch: makes taps that are fed together when a pass ends.
        sources: inputs and buffers that are read become events.
        parents: follow which event each value came from.
        ahead: tells before a pass runs whether something of it could be kept; the others run the user's compiled code.
    """

    is_compiled = True

    def __init__(
        self, *, batch: MakePassBatch, sources: bool = False, parents: bool = False, ahead: PassFilter | None = None
    ) -> None:
        self._batch = batch
        self._ahead = ahead
        self._sources = sources
        self._parents = parents
        self._thread = _Thread()
        self._warned: set[str] = set()

    def open(self, roots: Mapping[str, Any], listener: PlanningListener) -> None:
        """Begin to record the roots, in every thread."""
        self._listener = listener
        self._roots = compiled_roots(roots, listener, self._sources, self._parents)
        keep_out_of_compiling()
        for opened, root in enumerate(self._roots):
            try:
                root.open(self._backend, self._call)
            except BaseException:
                for each in self._roots[:opened]:
                    each.close()
                raise
        self._by_module = {id(root.module): root for root in self._roots if root.module is not None}
        self._layer = self._make_layer
        if self._by_module:
            COMPILED_CALLS.add(self._layer, self._thread)

    def close(self) -> None:
        """Stop; the user's own compiled code runs again."""
        COMPILED_CALLS.remove(self._layer)
        for root in self._roots:
            root.close()

    def frames(self) -> list[Frame]:
        """The modules that it knows, for messages."""
        return [frame for root in self._roots for frame in root.teacher.frames()]

    def called(self) -> set[str]:
        """The addresses of those that were called, for messages."""
        return {address for root in self._roots for address in root.teacher.called()}

    def unseen(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function in this thread of which nothing is recorded, by other recorders neither."""
        call = partial(function, *args)
        for thread in (self._thread, *COMPILED_CALLS.threads(), *MODULE_CALLS.threads()):
            call = partial(thread.mute, call, (), {})
        return call()

    def enter_region(self, name: str) -> Any:
        """Refused: what runs outside of compiled code is not seen."""
        raise SessionError(
            f"region({name!r}): the compiled engine only sees compiled code; give the compiled function itself as a "
            "root, Recorder({'act': agent.act}, ...), or record the model that was compiled with engine='eager'"
        )

    def leave_region(self, token: Any, error: BaseException | None) -> bool:
        """No region begins here."""
        return False

    def _make_layer(self, call: Call | None) -> Call:
        """The wrapper of calls of compiled modules; ``call`` is what comes next."""
        assert call is not None
        roots, record = self._by_module, self._call

        def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            root = roots.get(id(module))
            if root is None:
                return call(module, *args, **kwargs)
            return record(root, root.own, (args, kwargs), ())

        return __call__

    def _call(self, root: CompiledRoot, own: Callable[..., Any], arguments: Arguments, wanting: Roots) -> Any:
        """A call of a root, which by itself would run ``own``; recorders that came later are ``wanting`` its values."""
        state, listener, ahead = self._thread.state, self._listener, self._ahead
        if state.muted or graph_task_id() != -1 or functorch_level() is not None:
            if root.ran is not None and graph_task_id() != -1:
                # What checkpointing runs again has to save the same tensors.
                return self._thread.mute(root.run, (root.ran, own, arguments), {})
            return self._thread.mute(root.call, (own, arguments, wanting), {})
        run = listener.begin(root.entry)
        if run is None:
            return self._thread.mute(root.call, (own, arguments, wanting), {})
        current: _Pass | None = None
        state.muted = True  # what it calls is no pass of its own
        try:
            if ahead is None or ahead(run):
                state.current = current = _Pass(run, root, arguments)
                if wanting or root.before is not None:
                    out = root.call(own, arguments, (*wanting, root))
                else:
                    root.ran = root.alone if _grad_is_on() else None
                    out = root.run(root.alone, own, arguments)
                held, current.held = current.held, None
                if held is None:
                    self._finish(current)
                else:  # such a pass has been seen to end here
                    current.batch(run, held, [perf_counter()] * len(held))
            else:
                root.ran = None
                out = root.call(own, arguments, wanting)
        except BaseException as raised:
            state.muted, state.current = False, None
            if not self._end_badly(run, current, raised):
                raise
            return None
        state.muted, state.current = False, None
        listener.end(run, None)
        return out

    def _end_badly(self, run: Any, current: _Pass | None, raised: BaseException) -> bool:
        """The end of a pass that an exception left; True: its caller gets None."""
        error = (current and current.refused) or raised
        try:
            if current is not None and current.held is not None:
                self._feed_held(current)
        finally:
            is_halted = self._listener.end(run, error)
        if not is_halted and error is not raised:
            raise error from None
        return is_halted

    def _backend(
        self, root: CompiledRoot, compile_graph: CompileGraph, module: fx.GraphModule, inputs: Sequence[Any]
    ) -> Callable[..., Any]:
        """What compiles a graph: the user's backend, after the kept values were added to the outputs."""
        current = self._thread.state.current
        if current is None or current.root is not root:
            return self._unseen_graph(root, compile_graph(module, inputs))
        graph = CapturedGraph(module, inputs)
        try:
            current.step.following[graph] = self._way(current).go(graph, inputs, current.links(inputs))
        except FastrecError as error:
            current.refused = error  # dynamo wraps what a backend raises
            raise
        graph.finish(module)
        graph.compiled = compile_graph(module, inputs)
        n_own = graph.outputs.n_own
        thread = self._thread
        root.add(graph)

        def run_graph(*given: Any) -> Any:
            out = graph.compiled(*given) if graph.paths is None else graph.run(given)
            now, own = thread.state.current, out[:n_own]
            if now is None:
                return own
            edge = now.step.following.get(graph)
            if edge is not None and edge.batch is not None and not now.ran and edge.batch.is_ready():
                if edge.added is None:  # its own outputs belong to whoever called the model
                    now.held = [out[at] if at >= n_own else clone_like(out[at]) for at in edge.batched]
                else:
                    now.held = [*out[edge.added]]
                now.batch = edge.batch
                now.step = edge.step
                now.ran.append((graph, edge))
            else:
                self._ran(now, graph, given, out)
            now.own = own
            return own

        return run_graph

    def _unseen_graph(self, root: CompiledRoot, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """A graph that was compiled while nothing was recorded (autograd ran a part of a pass again)."""

        def run_graph(*given: Any) -> Any:
            now = self._thread.state.current
            if now is not None and now.root is root:
                now.refused = UnsupportedModelError(
                    f"{root.called} runs code that was compiled while autograd ran a part of it again, whose values "
                    "are not known; record the model that was compiled with engine='eager'"
                )
                raise now.refused
            return compiled(*given)

        return run_graph

    def _ran(self, current: _Pass, graph: CapturedGraph, given: Sequence[Any], out: Sequence[Any]) -> None:
        """A graph has run."""
        if current.held is not None:  # this pass goes on where others ended
            self._feed_held(current)
        if current.ran:
            current.let_go()
        edge = current.step.following.get(graph)
        if edge is None:
            edge = current.step.following[graph] = self._way(current).go(graph, given, current.links(given))
        run = current.run
        for position in edge.marked:
            out[position].requires_grad_()
        for is_held, (tap, position) in edge.early:
            tap(run, (current.out if is_held else out)[position])
        for tap, position in edge.feeds:
            tap(run, out[position])
        current.step = edge.step
        current.out = out
        current.ran.append((graph, edge))

    def _finish(self, current: _Pass) -> None:
        """The call returned."""
        step = current.step
        if step.end is None:
            way = self._way(current)
            step.end = way.end()
            self._tell_missing(way.missing(), ran=bool(current.ran))
        for tap, position in step.end:
            tap(current.run, current.out[position])
        if len(current.ran) == 1 and not self._parents:
            ((graph, edge),) = current.ran
            if not edge.batch_asked:
                edge.make_batch(graph.outputs.n_own, self._batch)

    def _feed_held(self, current: _Pass) -> None:
        """Feed one by one what was held for the end of the pass."""
        held, current.held = current.held or [], None
        ((_, edge),) = current.ran
        values = dict(zip(edge.batched, held, strict=True))
        for _, (tap, position) in edge.early:
            tap(current.run, values[position])
        for tap, position in edge.feeds:
            tap(current.run, values[position])
        current.out = values

    def _way(self, current: _Pass) -> GraphRoute:
        """How far the pass has come in its lesson, which is learned now if it was not."""
        root, way = current.root, current.way
        # Torch may give a graph up after its backend has seen it, and compile it otherwise.
        if way is None or way.gone != len(current.ran):
            lesson = root.learn(*current.arguments) if way is None else way.lesson
            way = current.way = GraphRoute(lesson, self._listener, root.teacher.table.known)
            for graph, edge in current.ran:
                if not way.go(graph, graph.inputs, edge.links).feeds_as(edge):
                    raise UnsupportedModelError(
                        f"{root.called} took another way through its compiled code than a run of it without compiled "
                        "code, so its records could be named wrong; record the model that was compiled with "
                        "engine='eager'"
                    )
        return way

    def _tell_missing(self, sites: list[str], *, ran: bool) -> None:
        fresh = [site for site in sites if site not in self._warned]
        if fresh:
            self._warned.update(fresh)
            shown = ", ".join(map(repr, fresh[:5])) + (f" and {len(fresh) - 5} more" if len(fresh) > 5 else "")
            where = "it falls between the compiled graphs, or nobody uses its value" if ran else "no compiled graph ran"
            warnings.warn(
                f"{shown}: not recorded, because {where}; record the model that was compiled with engine='eager' "
                "to see it",
                FastrecWarning,
                stacklevel=5,
            )


class _Pass:
    """A pass while it runs."""

    out: Any = ()  # of the last graph, by position
    held: list[Tensor] | None = None  # for the end of the pass
    batch: PassBatch  # that takes what is held
    own: Sequence[Any] = ()  # what the last graph returned
    returned: Sequence[list[Any]] = ()  # by the graphs before the last one, held weakly
    way: GraphRoute | None = None
    refused: FastrecError | None = None

    def __init__(self, run: Any, root: CompiledRoot, arguments: Arguments) -> None:
        self.run = run
        self.root = root
        self.arguments = arguments
        self.step: GraphStep = root.start
        self.ran: list[tuple[CapturedGraph, GraphTransition]] = []

    def let_go(self) -> None:
        """Hold what the last graph returned only as long as the model does: another one has run."""
        self.returned = [*self.returned, [ref(each) if isinstance(each, Tensor) else None for each in self.own]]
        self.own = ()

    def links(self, given: Sequence[Any]) -> Links:
        """Which of the tensors that a graph is given come from which outputs of the graphs before."""
        known = {id(each): (len(self.ran) - 1, position) for position, each in enumerate(self.own)}
        for number, outputs in enumerate(self.returned):
            for position, held in enumerate(outputs):
                value = held and held()
                if value is not None:
                    known.setdefault(id(value), (number, position))
        return {i: known[id(each)] for i, each in enumerate(given) if isinstance(each, Tensor) and id(each) in known}


class _ThreadPass:
    """What a thread is doing: a pass, or a call that is not to be recorded."""

    __slots__ = ("current", "muted")

    def __init__(self) -> None:
        self.current: _Pass | None = None
        self.muted = False


class _Thread(threading.local):
    """The state of each thread."""

    def __init__(self) -> None:
        self.state = _ThreadPass()

    def mute(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function of which nothing is recorded."""
        state = self.state
        current, muted = state.current, state.muted
        state.current, state.muted = None, True
        try:
            return function(*args, **kwargs)
        finally:
            state.current, state.muted = current, muted
