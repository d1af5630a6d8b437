"""Running the pass that is to be logged."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import msgspec
import torch
from torch import nn

from fastrec._errors import FastrecWarning, OptionError, UnsupportedModelError
from fastrec._torch.dynamo import is_compiled_wrapper
from fastrec._torch.state import seeded
from fastrec.engines import EagerEngine
from fastrec.engines._protocol import BasicRun
from fastrec.events.capture import CaptureSpec
from fastrec.graph.capture import GraphListener
from fastrec.graph.raw import Capture
from fastrec.graph.saving import Saver, Stream
from fastrec.graph.tracking import ModelState
from fastrec.session.inputs import NOT_GIVEN, args_of, check_inputs


class SaveRequest(msgspec.Struct, frozen=True):
    """Which operations are to be kept, by index, how, and where to if not in memory alone."""

    which: Container[int] = ()
    spec: CaptureSpec = CaptureSpec()
    stream: Stream | None = None


class PassRunner:
    """One way to run a model: with these inputs, or by this function."""

    def __init__(
        self,
        roots: Mapping[str, nn.Module],
        input_args: Any = NOT_GIVEN,
        input_kwargs: Mapping[str, Any] | None = None,
        call: Callable[[], Any] | None = None,
        random_seed: int | None = None,
    ) -> None:
        check_inputs(input_args, call)
        if call is None and len(roots) > 1:
            raise OptionError(
                f"there are several roots ({', '.join(map(repr, roots))}), and inputs are for one; "
                "run them with call=lambda: ..."
            )
        self._roots = roots
        self._args = () if call is not None else args_of(input_args)
        self._kwargs = input_kwargs or {}
        self._call = call
        self._seed = random_seed

    @property
    def is_call(self) -> bool:
        """Whether a function of the user runs the model."""
        return self._call is not None

    def __call__(self, keeping: SaveRequest) -> Capture:
        """Run it once, and see everything."""
        began = perf_counter()
        capture = Capture()
        saver = Saver(keeping.which, keeping.spec, capture.gradients, keeping.stream)
        state = ModelState(self._roots, attributes=self.is_call)
        listener = GraphListener(state, capture, saver, takes_inputs=self.is_call)
        engine = EagerEngine(op_runner=listener)
        with seeded(self._seed), _quiet_about_fusing():
            capture.seed = torch.initial_seed() if self._seed is None else self._seed
            engine.open(self._roots, listener)
            try:
                capture.started = time.time()
                out = self._run(engine, listener)
                capture.ended = time.time()
            finally:
                engine.close()
                listener.outside = None  # a frame, which holds the output and the listener itself
            listener.outputs(out)
            listener.finish()
        capture.seconds = perf_counter() - began
        return capture

    def _run(self, engine: EagerEngine[BasicRun], listener: GraphListener) -> Any:
        listener.outside = sys._getframe()
        if self._call is None:
            (name, root), *_ = self._roots.items()
            listener.inputs(f"{name}:in", self._args, self._kwargs)
            return root(*self._args, **self._kwargs)
        token = engine.enter_region("call")
        assert token is not None
        try:
            out = self._call()
        except BaseException as error:
            engine.leave_region(token, error)
            raise
        engine.leave_region(token, None)
        return out


@contextmanager
def _quiet_about_fusing() -> Iterator[None]:
    # A graph is asked for its elementary operations, so fused modules are opened without a word.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*without its fused kernel", FastrecWarning)
        yield


Models = nn.Module | Mapping[str, nn.Module]


def uncompiled(model: Models, *, by_call: bool) -> Models:
    """A model or several by name; in place of one that ``torch.compile`` made, that which it was made from.

    A user's own function calls what it calls, so there nothing can be put in place of a compiled model.
    """
    if isinstance(model, nn.Module):
        found: nn.Module = _uncompiled("the model", model, by_call)
        return found
    if isinstance(model, Mapping):
        return {name: _uncompiled(f"the model {name!r}", root, by_call) for name, root in model.items()}
    return model


def _uncompiled(called: str, model: Any, by_call: bool) -> Any:
    if not isinstance(model, nn.Module) or not is_compiled_wrapper(model):
        return model
    if by_call:
        raise UnsupportedModelError(
            f"{called} is compiled with torch.compile, and a graph can't see inside of compiled code; give the model "
            "that it was made from (model._orig_mod), and call that one in call="
        )
    return model._orig_mod
