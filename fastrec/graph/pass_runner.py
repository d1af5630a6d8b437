"""Running the pass that is to be logged, with an engine that hands every op to a tracer."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from torch import nn

from fastrec._errors import FastrecWarning, UnsupportedModelError
from fastrec._torch.dynamo import is_compiled_wrapper
from fastrec._torch.state import seeded
from fastrec.engines import EagerEngine
from fastrec.graph.capture import GraphTracer
from fastrec.graph.raw import Capture
from fastrec.graph.saving import Saver, SaveRequest
from fastrec.graph.tracking import ModelState
from fastrec.session.inputs import NOT_GIVEN, ModelRun

Models = nn.Module | Mapping[str, nn.Module]


class PassRunner:
    """Runs a model on given inputs, or by a given function, any number of times."""

    def __init__(
        self,
        roots: Mapping[str, nn.Module],
        input_args: Any = NOT_GIVEN,
        input_kwargs: Mapping[str, Any] | None = None,
        call: Callable[[], Any] | None = None,
        random_seed: int | None = None,
    ) -> None:
        self._roots = roots
        self._run = ModelRun.of(roots, input_args, input_kwargs, call)
        self._seed = random_seed
        self.failed: Capture | None = None
        """What was captured of a run that raised."""

    @property
    def is_call(self) -> bool:
        """Whether a user's function runs the model."""
        return self._run.call is not None

    def __call__(self, request: SaveRequest) -> Capture:
        """Run the model once and capture everything."""
        began = perf_counter()
        capture = Capture()
        saver = Saver(request, capture.gradients)
        state = ModelState(self._roots)
        tracer = GraphTracer(state, capture, saver, takes_inputs=self.is_call)
        engine = EagerEngine(op_runner=tracer)
        with seeded(self._seed):
            capture.seed = self._seed
            engine.open(self._roots, tracer)
            try:
                tracer.outside = sys._getframe()
                if not self.is_call:
                    tracer.inputs(f"{next(iter(self._roots))}:in", self._run.args, self._run.kwargs)
                capture.started = time.time()
                out = self._run(engine)
            except BaseException as error:
                tracer.failed(error)
                tracer.finish()
                self.failed = capture
                raise
            finally:
                capture.ended = time.time()
                capture.seconds = perf_counter() - began
                engine.close()
                tracer.outside = None  # a frame holds the output, and through the tracer itself
            tracer.outputs(out)
            tracer.finish()
        if not any(op.kind == "output" for op in capture.ops) and out is not None:
            capture.output_class = type(out).__name__
            warnings.warn(
                f"the model returned a {capture.output_class}, in which fastrec finds no tensors, so the history has "
                "no outputs; log a forward that returns tensors, or a tuple or dict of them",
                FastrecWarning,
                stacklevel=3,
            )
        capture.seconds = perf_counter() - began
        return capture


def uncompiled(model: Models, *, by_call: bool) -> Models:
    """The model or models, with each that ``torch.compile`` made replaced by the one it was made from.

    A user's function calls the compiled model itself, which can't be replaced from here.
    """
    if isinstance(model, Mapping) and not isinstance(model, nn.Module):
        return {name: _uncompiled(f"the model {name!r}", root, by_call) for name, root in model.items()}
    root: nn.Module = _uncompiled("the model", model, by_call)
    return root


def _uncompiled(title: str, model: Any, by_call: bool) -> Any:
    if not isinstance(model, nn.Module) or not is_compiled_wrapper(model):
        return model
    if by_call:
        raise UnsupportedModelError(
            f"{title} is compiled with torch.compile, and a graph can't see inside compiled code; give the model "
            "that it was made from (model._orig_mod), and call that one in call="
        )
    return model._orig_mod
