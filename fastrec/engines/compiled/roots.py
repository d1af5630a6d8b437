"""The roots of the compiled engine, and how calls of them are caught."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from fastrec._errors import SessionError, UnsupportedModelError
from fastrec._torch.dynamo import CompiledCode, CompiledSwap, compiled_part, function_of
from fastrec._torch.internals import GLOBAL_HOOKS
from fastrec._torch.wrappers import is_compiled_wrapper, unwrapped
from fastrec.engines._protocol import PlanningListener
from fastrec.engines.compiled.graphs import CapturedGraph, GraphStep
from fastrec.engines.compiled.reference_run import ReferenceTrace, ReferenceTracer
from fastrec.engines.eager.module_calls import COMPILED_CALLS

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

Caught = Callable[["CompiledRoot", Callable[..., Any], Arguments, "Roots"], Any]

Roots = tuple["CompiledRoot", ...]
"""Those of several recorders of the same compiled code that want what a call computes, the last to come first."""

CompileGraph = Callable[[Any, Any], Any]

Backend = Callable[["CompiledRoot", CompileGraph, Any, Any], Any]


class CompiledRoot:
    """A compiled module, function or method.

    ``module`` is the module whose calls are passes, None where calls of the function are. ``before`` is the same in
    the recorder that came before, if one that is still open did.
    """

    def __init__(self, name: str, root: Any, listener: PlanningListener, *, sources: bool, parents: bool) -> None:
        self.called = f"the model {name!r}" if name else "the model"
        self.entry = name
        compiled = compiled_part(root)
        if compiled is None:
            raise UnsupportedModelError(
                f"{self.called} is not compiled, which the compiled engine needs; give torch.compile(model), or use "
                "engine='eager'"
            )
        self.code = CompiledCode(compiled, self.called)
        is_module = isinstance(root, nn.Module)
        self.module = root if is_module and is_compiled_wrapper(root) else None
        self.inner = unwrapped(root) if is_module else None
        self.catches = self.module is None
        # A lazy module looks at its first input before anything else.
        self._state = None if self.module is None or "_forward" in self.module.__dict__ else self.module.__dict__
        self.before: CompiledRoot | None = None
        self.ran: Callable[..., Any] | None = None  # what the last pass ran, if it was recorded
        self._together: dict[Roots, Callable[..., Any]] = {}
        self._detour: CompiledSwap | None = None
        self.start = GraphStep()
        self.graphs: list[CapturedGraph] = []
        modules, objects = ({name: self.inner}, []) if self.inner is not None else _reached(name, self.code)
        self.teacher = ReferenceTracer(modules, objects, listener, sources=sources, parents=parents)

    def open(self, backend: Backend, caught: Caught) -> None:
        """Compile it anew, and catch its calls."""
        roots = COMPILED_CALLS.shared.setdefault(id(self.code.wrapper), [])
        if any(root.catches != self.catches for root in roots):
            raise SessionError(
                f"{self.called} runs compiled code that another recorder has as "
                f"{'a module' if self.catches else 'a function'}; give both recorders the same, the compiled module or "
                "the compiled function"
            )
        self.backend = backend
        self.caught = caught
        if self._state is not None:
            self.own = self.code.compiled
        elif self.module is not None:
            self.own = partial(COMPILED_CALLS.original, self.module)
        self.alone = self.compiled_for((self,))
        if self.catches and not roots:
            self.code.catch(partial(_call_last, roots))
        roots.append(self)
        _connect(roots)

    def close(self) -> None:
        """Let calls be as they were; compiled code and graphs can be let go of."""
        roots = COMPILED_CALLS.shared.get(id(self.code.wrapper), [])
        if self in roots:
            roots.remove(self)
            _connect(roots)
            if not roots:
                del COMPILED_CALLS.shared[id(self.code.wrapper)]
                if self.catches:
                    self.code.release()
        self.alone = self.own = self.code.compiled  # calls that still run
        if self._detour is not None:
            self._detour.leave(self)
            self._detour = None
        self.ran = None
        self._together.clear()
        self.start = GraphStep()
        for graph in self.graphs:  # torch holds them for as long as the code that they were made from
            graph.compiled = None
        self.graphs.clear()

    def add(self, graph: CapturedGraph) -> None:
        """A graph of it is compiled."""
        self.graphs.append(graph)

    def compiled_for(self, roots: Roots) -> Callable[..., Any]:
        """The same, compiled so that these roots get what they keep."""
        compile_graph: CompileGraph = self.code.backend
        for root in reversed(roots):
            compile_graph = partial(root.backend, root, compile_graph)
        return self.code.compiled_by(_Backend(compile_graph, self.code.backend))

    def call(self, own: Callable[..., Any], arguments: Arguments, wanting: Roots) -> Any:
        """Call it for the recorders that want what it computes, after those that came before were asked."""
        if self.before is not None:
            return self.before.caught(self.before, own, arguments, wanting)
        if not wanting:
            return self.run(None, own, arguments)
        first = wanting[0]
        if len(wanting) == 1:
            compiled = first.alone
        else:
            found = first._together.get(wanting)
            compiled = found or first._together.setdefault(wanting, first.compiled_for(wanting))
        first.ran = compiled if torch.is_grad_enabled() else None
        return self.run(compiled, own, arguments)

    def run(self, compiled: Callable[..., Any] | None, own: Callable[..., Any], arguments: Arguments) -> Any:
        """Call it, with other compiled code in the place of its own if there is some."""
        (args, kwargs), state = arguments, self._state
        # All that torch's own call would do without hooks; the way there takes longer than to record some values.
        if state is None or not (
            state["_forward_hooks"]
            or state["_forward_pre_hooks"]
            or state["_backward_hooks"]
            or state["_backward_pre_hooks"]
            or any(GLOBAL_HOOKS)
        ):
            return (compiled or own)(*args, **kwargs)
        module = self.module
        assert module is not None
        if self._detour is None:
            self._detour = CompiledSwap.of(module, self)
        return self._detour.run(compiled, partial(COMPILED_CALLS.original, module), args, kwargs)

    def learn(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ReferenceTrace:
        """What a call of it does."""
        if self.inner is None:
            return self.teacher.learn_region(self.entry, self.code.plain(), args, kwargs)
        return self.teacher.learn(self.inner, args, kwargs)


def _connect(roots: list[CompiledRoot]) -> None:
    for root, before in zip(roots, [None, *roots], strict=False):
        root.before = before
        root._together.clear()


def _call_last(
    roots: list[CompiledRoot], own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A call of a function goes to the recorder that came last."""
    if not roots:
        return own(*args, **kwargs)
    return roots[-1].caught(roots[-1], own, (args, kwargs), ())


class _Backend:
    """A backend as torch sees it: each is another one, though the options are the same."""

    def __init__(self, compile_graph: Callable[..., Any], users: Any) -> None:
        self._compile_graph = compile_graph
        self.compiler_name = getattr(users, "compiler_name", "")
        if hasattr(users, "get_compiler_config"):
            self.get_compiler_config = users.get_compiler_config

    def __call__(self, module: Any, inputs: Any) -> Any:
        return self._compile_graph(module, inputs)


def compiled_roots(
    roots: Mapping[str, Any], listener: PlanningListener, sources: bool, parents: bool
) -> list[CompiledRoot]:
    """The compiled roots; UnsupportedModelError for what is not compiled, or has compiled methods that are no roots."""
    made = [CompiledRoot(name, root, listener, sources=sources, parents=parents) for name, root in roots.items()]
    given = [root.code.wrapper for root in made]
    for root in made:
        if given.count(root.code.wrapper) > 1:
            raise SessionError(f"{root.called} is the same compiled code as another root; give it once")
        if root.inner is not None:
            check_methods(root.called, root.inner, given)
    return made


def check_methods(called: str, model: nn.Module, given: list[Any]) -> None:
    """Raise UnsupportedModelError for a compiled method of a model that is no root itself."""
    for address, module in model.named_modules():
        for name, value in (*vars(type(module)).items(), *vars(module).items()):
            function = function_of(value)
            is_compiled = "_torchdynamo_orig_callable" in getattr(function, "__dict__", {})
            if is_compiled and name not in ("forward", "_compiled_call_impl") and function not in given:
                where = f"{address}.{name}" if address else name
                raise UnsupportedModelError(
                    f"{called} has a compiled method, {where!r}, and what runs inside of it would be missed; give it "
                    f"as a root, Recorder({{{name!r}: model.{where}}}, ...)"
                )


def _reached(name: str, code: CompiledCode) -> tuple[dict[str, nn.Module], list[Any]]:
    """The modules that a function uses, by address, and other objects that it may write to."""
    plain = code.plain()
    owner = getattr(plain, "__self__", None)
    if isinstance(owner, nn.Module):
        return {name: owner}, []
    function = function_of(plain)
    seen: dict[str, Any] = dict(vars(owner)) if hasattr(owner, "__dict__") else {}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    seen |= {variable: cell.cell_contents for variable, cell in cells}
    seen |= {v: function.__globals__[v] for v in function.__code__.co_names if v in function.__globals__}
    modules = {f"{name}.{v}" if name else v: unwrapped(m) for v, m in seen.items() if isinstance(m, nn.Module)}
    if len(modules) == 1:
        modules = {name: next(iter(modules.values()))}
    return modules, [] if owner is None or not hasattr(owner, "__dict__") else [owner]
