"""The roots of the compiled engine: how their calls are caught, and which code they run.

A root is a compiled module, function or method. While a recorder is open it runs code of its own: the same function,
compiled once more with the user's options, by a backend that adds the kept values to the outputs of each graph and then
gives the graph to the user's backend. The user's own compiled code is left as it is, and runs again afterwards.

- Calls of a compiled module are caught by the wrapper of module calls.
- The user's loop holds a compiled function itself, so there the function's own code is exchanged for a catching one.

Several recorders may be open on the same code. They form a chain (``previous``), the last one that came catches the
calls, and for each set of recorders that want something of a pass the code is compiled once, for all of them together:
a compiled model must run only once in a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from fastrec._errors import SessionError, UnsupportedModelError
from fastrec._torch.dynamo import (
    CompiledCode,
    CompiledSwap,
    compiled_part,
    function_of,
    is_compiled_function,
    is_compiled_wrapper,
)
from fastrec._torch.internals import GLOBAL_HOOKS
from fastrec._torch.wrappers import unwrapped
from fastrec.engines._protocol import PlanningListener, WatchOptions
from fastrec.engines.compiled.graphs import CapturedGraph
from fastrec.engines.compiled.reference_run import ReferenceTrace, ReferenceTracer
from fastrec.engines.compiled.routes import GraphStep
from fastrec.engines.eager.module_calls import COMPILED_CALLS

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

Code = Callable[..., Any]

Roots = tuple["CompiledRoot", ...]
"""The roots of several recorders of the same code that want what a call computes; the last one that came is first."""

CatchCall = Callable[["CompiledRoot", Code, Arguments, "Roots"], Any]
"""Called in place of a root's own code, which is given, for recorders that want something of the pass already."""

CompileGraph = Callable[[Any, Any], Any]

Backend = Callable[["CompiledRoot", CompileGraph, Any, Any], Any]
"""A backend for one root: adds what is kept to a graph, and has it compiled by the backend that it is given."""


class CompiledRoot:
    """A compiled module, function or method.

    ``module`` is the module whose calls are passes, None where calls of the function are. ``own_code`` runs the user's
    own code, ``recorded`` the code for this recorder alone. ``previous`` is the same root in the recorder that came
    before, if that is still open. ``last_code`` is what the last pass ran if it was recorded and may be run again in
    parts.
    """

    def __init__(self, name: str, root: Any, listener: PlanningListener[Any], watch: WatchOptions) -> None:
        self.description = f"the model {name!r}" if name else "the model"
        self.entry = name
        compiled = compiled_part(root)
        if compiled is None:
            raise UnsupportedModelError(
                f"{self.description} is not compiled, which the compiled engine needs; give torch.compile(model), or "
                "use engine='eager'"
            )
        self.code = CompiledCode(compiled, self.description)
        is_module = isinstance(root, nn.Module)
        self.module: nn.Module | None = root if is_module and is_compiled_wrapper(root) else None
        self.inner: nn.Module | None = unwrapped(root) if is_module else None
        # The attributes of a module that can be called by its code at once; a lazy module looks at its first input
        # before anything else.
        self._state = None if self.module is None or "_forward" in self.module.__dict__ else self.module.__dict__
        self.previous: CompiledRoot | None = None
        self.last_code: Code | None = None
        self._shared_code: dict[Roots, Code] = {}
        self._swap: CompiledSwap | None = None
        self.start = GraphStep()
        self.graphs: list[CapturedGraph] = []
        modules, objects = ({name: self.inner}, []) if self.inner is not None else _reached(name, self.code)
        self.tracer = ReferenceTracer(modules, objects, listener, watch)

    @property
    def is_function(self) -> bool:
        """Whether calls of a function are passes."""
        return self.module is None

    def open(self, backend: Backend, catch_call: CatchCall) -> None:
        """Compile it anew, and catch its calls."""
        self.backend = backend
        self.catch_call = catch_call
        if self._state is not None:
            self.own_code: Code = self.code.compiled
        elif self.module is not None:
            self.own_code = partial(COMPILED_CALLS.original, self.module)
        self.recorded = self._compiled_for((self,))
        OPEN_ROOTS.add(self)

    def close(self) -> None:
        """Let calls be as they were, and compiled code and graphs be freed."""
        OPEN_ROOTS.remove(self)
        self.recorded = self.own_code = self.code.compiled  # for calls that still run
        if self._swap is not None:
            self._swap.leave(self)
            self._swap = None
        self.last_code = None
        self._shared_code.clear()
        self.start = GraphStep()
        for graph in self.graphs:
            graph.forget()
        self.graphs.clear()

    def put_behind(self, previous: CompiledRoot | None) -> None:
        """Another recorder of the same code has come or gone."""
        self.previous = previous
        self._shared_code.clear()

    def call(self, own_code: Code, arguments: Arguments, wanting: Roots) -> Any:
        """Call it for the recorders that want what it computes, after those that came before were asked."""
        if self.previous is not None:
            return self.previous.catch_call(self.previous, own_code, arguments, wanting)
        if not wanting:
            return self.run(None, own_code, arguments)
        first = wanting[0]
        code = first.recorded
        if len(wanting) > 1:
            shared = first._shared_code
            code = shared.get(wanting) or shared.setdefault(wanting, first._compiled_for(wanting))
        first.last_code = code if torch.is_grad_enabled() else None
        return self.run(code, own_code, arguments)

    def run(self, code: Code | None, own_code: Code, arguments: Arguments) -> Any:
        """Call it, with other code in the place of its own if there is some."""
        (args, kwargs), state = arguments, self._state
        # Without hooks the code is all that a call of the module runs, so it is called directly: torch's way there
        # takes longer than to record some values.
        if state is None or not (
            state["_forward_hooks"]
            or state["_forward_pre_hooks"]
            or state["_backward_hooks"]
            or state["_backward_pre_hooks"]
            or any(GLOBAL_HOOKS)
        ):
            return (code or own_code)(*args, **kwargs)
        module = self.module
        assert module is not None
        if self._swap is None:
            self._swap = CompiledSwap.of(module, self)
        return self._swap.run(code, partial(COMPILED_CALLS.original, module), args, kwargs)

    def trace(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ReferenceTrace:
        """What a call of it does."""
        if self.inner is None:
            return self.tracer.trace_region(self.entry, self.code.plain, args, kwargs)
        return self.tracer.trace(self.inner, args, kwargs)

    def _compiled_for(self, roots: Roots) -> Code:
        """The same code, compiled so that these roots get what they keep."""
        compile_graph: CompileGraph = self.code.backend
        for root in reversed(roots):
            compile_graph = partial(root.backend, root, compile_graph)
        return self.code.compiled_by(_NamedBackend(compile_graph, self.code.backend))


class _NamedBackend:
    """A backend as torch sees it: an object for each recorder, because dynamo keeps compiled code by its backend."""

    def __init__(self, compile_graph: CompileGraph, users_backend: Any) -> None:
        self._compile_graph = compile_graph
        self.compiler_name = getattr(users_backend, "compiler_name", "")
        get_config = getattr(users_backend, "get_compiler_config", None)
        if get_config is not None:
            self.get_compiler_config = get_config

    def __call__(self, module: Any, inputs: Any) -> Any:
        return self._compile_graph(module, inputs)


class OpenRoots:
    """The roots of all open recorders of this process, by the code that they run, in order of coming."""

    def __init__(self) -> None:
        self._by_code: dict[int, list[CompiledRoot]] = {}

    def add(self, root: CompiledRoot) -> None:
        """A recorder opens."""
        roots = self._by_code.setdefault(id(root.code.wrapper), [])
        if any(other.is_function != root.is_function for other in roots):
            raise SessionError(
                f"{root.description} runs compiled code that another recorder has as "
                f"{'a module' if root.is_function else 'a function'}; give both recorders the same, the compiled "
                "module or the compiled function"
            )
        if root.is_function and not roots:
            root.code.catch(partial(_call_last, roots))
        roots.append(root)
        _chain(roots)

    def remove(self, root: CompiledRoot) -> None:
        """A recorder closes."""
        key = id(root.code.wrapper)
        roots = self._by_code.get(key, [])
        if root in roots:
            roots.remove(root)
            _chain(roots)
        if not roots and self._by_code.pop(key, None) is not None and root.is_function:
            root.code.release()


OPEN_ROOTS = OpenRoots()
"""One for the process, because a compiled function has one place in which its calls can be caught."""


def _chain(roots: list[CompiledRoot]) -> None:
    for root, previous in zip(roots, [None, *roots], strict=False):
        root.put_behind(previous)


def _call_last(roots: list[CompiledRoot], own_code: Code, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of a function goes to the recorder that came last."""
    if not roots:
        return own_code(*args, **kwargs)
    return roots[-1].catch_call(roots[-1], own_code, (args, kwargs), ())


def compiled_roots(
    roots: Mapping[str, Any], listener: PlanningListener[Any], watch: WatchOptions
) -> list[CompiledRoot]:
    """The compiled roots; UnsupportedModelError for what is not compiled, or has compiled methods that are no roots."""
    compiled = [CompiledRoot(name, root, listener, watch) for name, root in roots.items()]
    codes = [root.code.wrapper for root in compiled]
    for root in compiled:
        if codes.count(root.code.wrapper) > 1:
            raise SessionError(f"{root.description} is the same compiled code as another root; give it once")
        if root.inner is not None:
            check_methods(root.description, root.inner, codes)
    return compiled


def check_methods(description: str, model: nn.Module, codes: list[Any]) -> None:
    """Raise UnsupportedModelError for a compiled method of a model that is no root itself."""
    for address, module in model.named_modules():
        for name, value in (*vars(type(module)).items(), *vars(module).items()):
            if name in ("forward", "_compiled_call_impl"):
                continue
            if is_compiled_function(value) and function_of(value) not in codes:
                method = f"{address}.{name}" if address else name
                raise UnsupportedModelError(
                    f"{description} has a compiled method, {method!r}, and what runs inside of it would be missed; "
                    f"give it as a root, Recorder({{{name!r}: model.{method}}}, ...)"
                )


def _reached(name: str, code: CompiledCode) -> tuple[dict[str, nn.Module], list[Any]]:
    """The modules that a function uses, by address, and other objects that it may write to."""
    owner = getattr(code.plain, "__self__", None)
    if isinstance(owner, nn.Module):
        return {name: owner}, []
    function = function_of(code.plain)
    has_attributes = hasattr(owner, "__dict__")
    reached: dict[str, Any] = dict(vars(owner)) if has_attributes else {}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    reached |= {variable: cell.cell_contents for variable, cell in cells}
    reached |= {v: function.__globals__[v] for v in function.__code__.co_names if v in function.__globals__}
    modules = {f"{name}.{v}" if name else v: unwrapped(m) for v, m in reached.items() if isinstance(m, nn.Module)}
    if len(modules) == 1:
        modules = {name: next(iter(modules.values()))}
    return modules, [owner] if owner is not None and has_attributes else []
