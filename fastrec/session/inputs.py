"""The recorder: a session around an unchanged loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fastrec._errors import OptionError, UnsupportedModelError
from fastrec.engines import is_compiled


def args_of(input_args: Any) -> tuple[Any, ...]:
    """Positional arguments: a tuple or list of them, or a single one; a named tuple is a single one."""
    return tuple(input_args) if type(input_args) in (tuple, list) else (input_args,)


def roots_of(model: Any) -> dict[str, Any]:
    """The roots by name, "" where there is one; UnsupportedModelError or OptionError for anything else."""
    if isinstance(model, nn.Module):
        return {"": model}
    if isinstance(model, Mapping) and not isinstance(model, nn.Module):
        if not model:
            raise UnsupportedModelError("the dict of models is empty; give {'actor': actor, 'critic': critic}")
        for name, root in model.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise OptionError(f"{name!r} is no name of a root; give a plain word such as 'actor'")
            if not isinstance(root, nn.Module) and not is_compiled(root):
                raise UnsupportedModelError(f"the model {name!r} is a {_describe_root(root)}, not a torch.nn.Module")
        return dict(model)
    if is_compiled(model):
        raise UnsupportedModelError(
            "the model is a compiled function, whose records need a name to stand under; give Recorder({'act': "
            "compiled_function}, ...)"
        )
    raise UnsupportedModelError(
        f"the model is a {_describe_root(model)}, not a torch.nn.Module; give a module, or a dict name -> module"
    )


def _describe_root(given: Any) -> str:
    if type(given).__name__ == "ExportedProgram":
        return "ExportedProgram (record the module that it was exported from)"
    return f"class ({given.__name__}; make an instance)" if isinstance(given, type) else type(given).__name__


NOT_GIVEN: Any = object()


def check_inputs(input_args: Any, call: Callable[[], Any] | None) -> None:
    """Raise OptionError unless there is one way to run the model."""
    if (call is None) == (input_args is NOT_GIVEN):
        raise OptionError("give either input_args, or call= with a function that runs the model")
