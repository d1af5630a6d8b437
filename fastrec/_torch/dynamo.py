"""Everything that fastrec knows of ``torch._dynamo``, the compiler behind ``torch.compile``.

    runs_compiled(module)                          # does a call of it run compiled code?
    code = CompiledCode(compiled_part(model), "the model")
    code.compiled_by(backend)(x)                   # compiled as the user's code is, but by a backend of ours

``torch._dynamo`` is never imported here, only looked for among the loaded modules: the import takes seconds, and where
nobody has imported it nothing is compiled. Its private parts change often. ``CompiledCode`` looks for all that it reads
when a session opens, and refuses a torch that lacks some of it by name and version. ``COMPILED_TORCH`` in
``versions`` has those that it works with.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastrec._errors import UnsupportedModelError
from fastrec._torch.versions import COMPILED_TORCH
from fastrec._torch.wrappers import unwrapped

DYNAMO_FOLDER = os.path.join("torch", "_dynamo")
"""Part of the paths of dynamo's own files; functions in them replace others while dynamo traces."""

NUMPY_FUNCTIONS_MODULE = "torch._dynamo.utils"
"""The module of the wrappers by which dynamo computes functions of numpy with torch."""

_ORIGINAL_FUNCTION = "_torchdynamo_orig_callable"
"""The attribute in which what dynamo made holds the function that it was made from."""


def is_loaded() -> bool:
    """Whether torch has loaded what compiles; before that, nothing is compiled."""
    return "torch._dynamo" in sys.modules


def _dynamo(module: str) -> Any:
    return sys.modules[f"torch._dynamo.{module}"]


# --- What is compiled? ----------------------------------------------------------------------------------------------


def is_compiled(root: Any) -> bool:
    """Whether a call of a module, function or method runs what ``torch.compile`` made."""
    if isinstance(root, nn.Module) and compiled_part(unwrapped(root)) is not None:
        return True
    return compiled_part(root) is not None


def is_compiled_wrapper(module: nn.Module) -> bool:
    """Whether a module is what ``torch.compile(module)`` returned."""
    eval_frame = "_orig_mod" in module._modules and sys.modules.get("torch._dynamo.eval_frame")
    return bool(eval_frame) and isinstance(module, eval_frame.OptimizedModule)  # type: ignore[union-attr]


def runs_compiled(module: nn.Module) -> bool:
    """Whether a call of a module runs compiled code, of a wrapper, by ``module.compile()`` or in its ``forward``."""
    if not is_loaded():
        return False
    if is_compiled_wrapper(module) or module._compiled_call_impl is not None:
        return True
    return is_compiled_function(module.__dict__.get("forward") or getattr(type(module), "forward", None))


def is_compiled_function(function: Any) -> bool:
    """Whether dynamo made a function or method from another one."""
    return original_function(function) is not None


def original_function(function: Any) -> Callable[..., Any] | None:
    """What dynamo made a function or method from; None where it did not make it."""
    original: Callable[..., Any] | None = getattr(function_of(function), "__dict__", {}).get(_ORIGINAL_FUNCTION)
    return original


def function_of(callable_: Any) -> Any:
    """The function of a bound method, else the callable itself."""
    return callable_.__func__ if inspect.ismethod(callable_) else callable_


def compiled_part(root: Any) -> Any:
    """The compiled function that a call of a root runs; None where nothing is compiled."""
    if not is_loaded():
        return None
    if not isinstance(root, nn.Module):
        return root if is_compiled_function(root) else None
    if is_compiled_wrapper(root):
        # A wrapper of a lazy module keeps its compiled code under another name until the first call.
        forward = root.__dict__.get("_forward") or root.__dict__["forward"]
        return forward.own_code if isinstance(forward, CompiledSwap) else forward
    if root._compiled_call_impl is not None:
        return root._compiled_call_impl
    forward = root.__dict__.get("forward") or getattr(root, "forward", None)
    return forward if is_compiled_function(forward) else None


def compiled_module_class() -> type[nn.Module]:
    """The class of what ``torch.compile`` makes of a module; something has to have been compiled."""
    cls: type[nn.Module] = _dynamo("eval_frame").OptimizedModule
    return cls


# --- How fastrec looks to the compiler ------------------------------------------------------------------------------


def keep_out_of_compiling() -> bool:
    """Have dynamo step over this package, which it meets where a compiled function is called inside of a pass.

    False where dynamo is not loaded yet, so that it can't be told.
    """
    rules = sys.modules.get("torch._dynamo.trace_rules")
    if rules is not None:
        rules.add("fastrec")
    return rules is not None


def compile_as(function: Callable[..., Any], original: Callable[..., Any]) -> None:
    """Have ``torch.compile`` trace another function wherever it meets this one.

    What is compiled while a recorder is open is then a model as it is without one: nobody watches inside of it.
    """
    function._torchdynamo_inline = original  # type: ignore[attr-defined]


@contextmanager
def not_compiling() -> Iterator[None]:
    """Have ``torch.compiler.is_compiling()`` say no: models ask it, and compute differently while they are compiled."""
    compiler: Any = torch.compiler
    flag, compiler._is_compiling_flag = compiler._is_compiling_flag, False
    try:
        yield
    finally:
        compiler._is_compiling_flag = flag


def without_disable(function: Callable[..., Any]) -> Callable[..., Any]:
    """What ``torch.compiler.disable`` was given, where it made this function; else the function itself.

    Backends disable dynamo for what they return, and dynamo itself does so once more for what it calls. For a function
    that is only called under the outer one, the inner one is a Python frame and four calls into C for nothing.
    """
    original = original_function(function)
    # The id tells a wrapper from a function of the user's to which functools.wraps has copied a wrapper's attributes.
    is_wrapper = getattr(function, "_torchdynamo_wrapper_id", None) == id(function)
    is_disabled = is_wrapper and getattr(function, "_torchdynamo_disable", False)
    return original if original is not None and is_disabled else function


# --- Compiled code --------------------------------------------------------------------------------------------------


class CompiledCode:
    """A compiled function, what it was made from, and the options that it was compiled with."""

    def __init__(self, compiled: Callable[..., Any], description: str) -> None:
        self.compiled = compiled
        self.wrapper = function_of(compiled)
        _check_version(self.wrapper, description)
        # Not the variable of that name in the wrapper, which another recorder may have exchanged (see `catch`).
        self.original: Callable[..., Any] = getattr(self.wrapper, _ORIGINAL_FUNCTION)
        self.bound_to = getattr(compiled, "__self__", None)
        self._context = _free_variables(self.wrapper)["self"]
        if not callable(self._context.callback):
            raise UnsupportedModelError(
                f"{description} has compilation switched off (torch.compile(disable=True) or torch.compiler.disable); "
                "record the model that it was made from"
            )

    @property
    def plain(self) -> Callable[..., Any]:
        """The function or method that was compiled."""
        return self._bound(self.original)

    @property
    def backend(self) -> Callable[..., Any]:
        """The user's own backend, with the mode and the options that it was given."""
        return _dynamo("eval_frame").innermost_backend(self._context.callback)  # type: ignore[no-any-return]

    def compiled_by(self, backend: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, compiled with the same options but by another backend."""
        context = self._context
        options = {
            "nopython": context.fullgraph,
            "dynamic": context._dynamic,
            "error_on_graph_break": getattr(context, "error_on_graph_break", None),
            "guard_filter_fn": getattr(context._hooks, "guard_filter_fn", None),
            "shapes_spec": getattr(context, "_shapes_spec", None),
            # Otherwise what is compiled here would count against the recompile limit of the user's own code. When torch
            # has reached that limit, it runs any code that it has, that of a session that is over included.
            "isolate_recompiles": True,
        }
        # Not every torch takes all of these options, or lets them be read.
        accepted = _compile_options()
        optimize = sys.modules["torch._dynamo"].optimize
        compiler = optimize(backend, **{name: value for name, value in options.items() if name in accepted})
        return self._bound(compiler(self.original))

    def catch(self, caught: Callable[..., Any]) -> None:
        """Send calls of the user's compiled function to ``caught(own, args, kwargs)``, where ``own`` runs its code.

        The user's loop holds the function itself, so it can't be given another one. The function stays, and calls ours
        in place of the code that it wraps.
        """
        set_callback = _dynamo("eval_frame").set_eval_frame
        original = self.original

        def catching(*args: Any, **kwargs: Any) -> Any:
            # The user's wrapper has switched compiling on for what it calls, which is meant for its own code alone.
            compiling = set_callback(None)

            def own(*args: Any, **kwargs: Any) -> Any:
                callback = set_callback(compiling)
                try:
                    return original(*args, **kwargs)
                finally:
                    set_callback(callback)

            try:
                return caught(own, args, kwargs)
            finally:
                set_callback(compiling)

        _cell(self.wrapper, "fn").cell_contents = _dynamo("decorators").skip(catching)

    def release(self) -> None:
        """Let calls run the function's own code again."""
        _cell(self.wrapper, "fn").cell_contents = self.original

    def _bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self.bound_to is None else function.__get__(self.bound_to)


_CONTEXT_PARTS = ("callback", "fullgraph", "_dynamic", "_hooks")

_DYNAMO_PARTS = {
    "eval_frame": ("OptimizedModule", "_optimize", "innermost_backend", "set_eval_frame"),
    "decorators": ("skip",),
    "trace_rules": ("add",),
}


def _check_version(wrapper: Any, description: str) -> None:
    """Refuse compiled code of a torch in which not everything is where this file expects it."""
    variables = _free_variables(wrapper)
    missing = [f"the variable {name!r}" for name in ("fn", "self") if name not in variables]
    missing += [name for name in _CONTEXT_PARTS if not missing and not hasattr(variables["self"], name)]
    for module, names in _DYNAMO_PARTS.items():
        loaded = sys.modules.get(f"torch._dynamo.{module}")
        missing += [f"torch._dynamo.{module}.{name}" for name in names if not hasattr(loaded, name)]
    if not missing and "isolate_recompiles" not in _compile_options():
        missing = ["the option isolate_recompiles of torch._dynamo.optimize"]
    if missing:
        raise UnsupportedModelError(
            f"{description} is compiled by torch {torch.__version__}, in which the compiled engine does not find "
            f"{', '.join(missing)}; use a torch with which it was tested ({COMPILED_TORCH}), or record the model "
            "that was compiled with engine='eager'"
        )


def _compile_options() -> Container[str]:
    """The options that ``torch._dynamo.optimize`` takes in this torch."""
    return inspect.signature(_dynamo("eval_frame")._optimize).parameters


def _free_variables(function: Any) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells}


def _cell(function: Any, name: str) -> Any:
    return function.__closure__[function.__code__.co_freevars.index(name)]


# --- Compiled modules with hooks ------------------------------------------------------------------------------------


class CompiledSwap:
    """Takes the place of a module's compiled code: runs that code, or other code where a thread asked for it.

    A call of a compiled module runs its hooks around ``forward``. To run other code with the same hooks, ``forward``
    is this object for as long as any recorder uses it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.own_code: Callable[..., Any] = module.__dict__["forward"]
        self._module = module
        self._thread = _ThreadCode()
        self._users: set[int] = set()

    @classmethod
    def of(cls, module: nn.Module, user: object) -> CompiledSwap:
        """That of a module, which gets one if it has none."""
        forward = module.__dict__["forward"]
        if not isinstance(forward, cls):
            forward = module.__dict__["forward"] = cls(module)
        forward._users.add(id(user))
        return forward

    def leave(self, user: object) -> None:
        """Somebody uses it no more; after the last one the module has its own code again."""
        self._users.discard(id(user))
        if not self._users and self._module.__dict__.get("forward") is self:
            self._module.__dict__["forward"] = self.own_code

    def run(self, code: Callable[..., Any] | None, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the module, hooks and all, with other code; with None by its own, even inside of such a call."""
        thread = self._thread
        outer, thread.code = thread.code, code
        try:
            return call(*args, **kwargs)
        finally:
            thread.code = outer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self._thread.code or self.own_code)(*args, **kwargs)


class _ThreadCode(threading.local):
    """The code that a thread wants to run."""

    code: Callable[..., Any] | None = None
