"""The roots of the compiled engine, and how calls of them are caught."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from fastrec._contracts import PlanningListener
from fastrec._errors import SessionError, UnsupportedModelError
from fastrec.engines._calls import COMPILED_CALLS
from fastrec.engines._compiled_code import CompiledCode, compiled_part, function_of
from fastrec.engines._graphs import Graph, Step
from fastrec.engines._lesson import Lesson, Teacher
from fastrec.engines._modules import is_compiled_wrapper, unwrapped

Caught = Callable[["CompiledRoot", Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class CompiledRoot:
    """A compiled module, function or method.

    ``module`` is the module whose calls are passes, None where calls of the function are. ``recording`` is the same
    compiled by the engine's backend.
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
        self.start = Step()
        self.graphs: list[Graph] = []
        modules, objects = ({name: self.inner}, []) if self.inner is not None else _reached(name, self.code)
        self.teacher = Teacher(modules, objects, listener, sources=sources, parents=parents)

    def open(self, backend: Callable[..., Any], caught: Caught) -> None:
        """Compile it anew, and catch its calls."""
        if id(self.code.wrapper) in COMPILED_CALLS.taken:
            raise SessionError(
                f"{self.called} is compiled and is being recorded already, and compiled code hands its values to one "
                "recorder; join the predicates of the two with |, or give the second one torch.compile(model._orig_mod)"
            )
        COMPILED_CALLS.taken.add(id(self.code.wrapper))
        self.recording = self.code.compiled_by(_Backend(backend, self.code.backend))
        if self.module is None:
            self.code.catch(partial(caught, self))

    def close(self) -> None:
        """Let calls be as they were; compiled code and graphs can be let go of."""
        COMPILED_CALLS.taken.discard(id(self.code.wrapper))
        self.code.release()
        self.recording = self.code.compiled
        self.start = Step()
        for graph in self.graphs:  # torch holds them for as long as the code that they were made from
            graph.compiled = None
        self.graphs.clear()

    def learn(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Lesson:
        """What a call of it does."""
        if self.inner is None:
            return self.teacher.learn_region(self.entry, self.code.plain(), args, kwargs)
        return self.teacher.learn(self.inner, args, kwargs)


class _Backend:
    """A backend as torch sees it: each is another one, though the options are the same."""

    def __init__(self, compile_graph: Callable[..., Any], users: Any) -> None:
        self._compile_graph = compile_graph
        self.compiler_name = getattr(users, "compiler_name", "")
        if hasattr(users, "get_compiler_config"):
            self.get_compiler_config = users.get_compiler_config

    def __call__(self, module: Any, inputs: Any) -> Any:
        return self._compile_graph(module, inputs)


def roots_of(
    roots: Mapping[str, Any], listener: PlanningListener, sources: bool, parents: bool
) -> list[CompiledRoot]:
    """The compiled roots; UnsupportedModelError for what is not compiled, or has compiled methods that are no roots."""
    made = [CompiledRoot(name, root, listener, sources=sources, parents=parents) for name, root in roots.items()]
    given = [root.code.wrapper for root in made]
    for root in made:
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
