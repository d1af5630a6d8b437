"""How a user says what to run: a model or several, and inputs or a function.

    roots = roots_of({"actor": actor, "critic": critic})
    run = ModelRun.of(roots, NOT_GIVEN, None, call=lambda: agent.act(obs))
    run(engine)                                 # calls the function in a region of the engine

Recorder, record, dry_run and the graph functions take the same arguments, and all of them are checked here.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from torch import Tensor, nn

from fastrec._errors import FusedKernelWarning, OptionError, UnsupportedModelError
from fastrec.engines import is_compiled
from fastrec.engines._protocol import Engine, RunT
from fastrec.events.sites import SampleId

NOT_GIVEN: Any = object()
"""The default for inputs, because None is a possible input."""


def args_of(input_args: Any, root: Any) -> tuple[Any, ...]:
    """Positional arguments for a root: a tuple or list of them, or a single one; a named tuple is a single one.

    A tuple of several is a single one too if ``forward`` takes no more than one.
    """
    if input_args is NOT_GIVEN:
        return ()
    if type(input_args) not in (tuple, list) or (len(input_args) > 1 and _takes_one(root)):
        return (input_args,)
    return tuple(input_args)


def _takes_one(root: Any) -> bool:
    """Whether a root takes a single positional argument; False where its signature is not known."""
    try:
        parameters = inspect.signature(root.forward if isinstance(root, nn.Module) else root).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p.kind for p in parameters if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    return len(positional) == 1 and positional[0] is not inspect.Parameter.VAR_POSITIONAL


def roots_of(model: Any) -> dict[str, Any]:
    """The roots by name, "" where there is one; UnsupportedModelError or OptionError for anything else."""
    if isinstance(model, nn.Module):
        return {"": model}
    if isinstance(model, Mapping) and not isinstance(model, nn.Module):
        if not model:
            raise UnsupportedModelError("the dict of models is empty; give {'actor': actor, 'critic': critic}")
        for name, root in model.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise OptionError(f"{name!r} can't be the name of a root; give a plain word such as 'actor'")
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


def _describe_root(root: Any) -> str:
    if type(root).__name__ == "ExportedProgram":
        return "ExportedProgram (record the module that it was exported from)"
    return f"class ({root.__name__}; make an instance)" if isinstance(root, type) else type(root).__name__


def check_inputs(input_args: Any, input_kwargs: Mapping[str, Any] | None, call: Callable[[], Any] | None) -> None:
    """Raise OptionError unless there is exactly one way to run the model."""
    if input_kwargs is not None and not isinstance(input_kwargs, Mapping):
        raise OptionError(f"input_kwargs got a {type(input_kwargs).__name__}; give a dict of the model's keywords")
    if (call is None) == (input_args is NOT_GIVEN and input_kwargs is None):
        raise OptionError("give either input_args or input_kwargs, or call= with a function that runs the model")


def checked_sample_id(sample_id: Any) -> SampleId | None:
    """A sample id as passes have it, or one for each sample; OptionError for anything else."""
    if sample_id is None or isinstance(sample_id, str):
        return sample_id
    if isinstance(sample_id, Tensor | np.ndarray):
        sample_id = sample_id.tolist()
    elif isinstance(sample_id, np.integer):
        sample_id = int(sample_id)
    ids = tuple(sample_id) if isinstance(sample_id, list | tuple | range) else (sample_id,)
    if not ids or any(isinstance(element, bool) or not isinstance(element, str | int) for element in ids):
        raise OptionError(f"sample_id={sample_id!r:.80}: give a string, a whole number, or a list with one per sample")
    return ids if isinstance(sample_id, list | tuple | range) else ids[0]


class ModelRun(msgspec.Struct, frozen=True):
    """One run of a model under an engine that observes it: a root on inputs, or a user's function."""

    root: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    call: Callable[[], Any] | None

    @classmethod
    def of(
        cls,
        roots: Mapping[str, Any],
        input_args: Any,
        input_kwargs: Mapping[str, Any] | None,
        call: Callable[[], Any] | None,
    ) -> ModelRun:
        """Check what the user gave; OptionError if it does not fit together."""
        check_inputs(input_args, input_kwargs, call)
        if call is None and len(roots) > 1:
            raise OptionError(
                f"there are several roots ({', '.join(map(repr, roots))}), and inputs are for one; "
                "run them with call=lambda: ..."
            )
        root = next(iter(roots.values()))
        args = () if call is not None else args_of(input_args, root)
        return cls(root, args, input_kwargs or {}, call)

    def __call__(self, engine: Engine[RunT]) -> Any:
        """Run the model under an open engine as one pass, and return its output."""
        if self.call is None:
            return self.passes()
        token = engine.enter_region("call")
        try:
            out = self.passes()
        except BaseException as error:
            engine.leave_region(token, error)
            raise
        engine.leave_region(token, None)
        return out

    def passes(self) -> Any:
        """Run the model as under a recorder, with a pass for each module that a user's function calls.

        Modules are opened that would otherwise run a fused kernel. A recorder warns about that; here it is what the
        user asked for.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FusedKernelWarning)
            return self.root(*self.args, **self.kwargs) if self.call is None else self.call()
