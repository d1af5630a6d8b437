"""Logging one forward pass."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from fastrec._capture import CaptureSpec
from fastrec._dry_state import restored
from fastrec._errors import FastrecWarning, OptionError
from fastrec._oneshot import NOT_GIVEN, check_inputs
from fastrec._recorder import args_of, roots_of
from fastrec._seeds import random_state_restored, seeded
from fastrec.engines import EagerEngine
from fastrec.graph._capture import GraphListener
from fastrec.graph._history import ModelHistory
from fastrec.graph._raw import Capture
from fastrec.graph._saving import All, Saver
from fastrec.graph._state import ModelState


def log_forward_pass(  # noqa: PLR0913
    model: nn.Module | Mapping[str, nn.Module],
    input_args: Any = NOT_GIVEN,
    input_kwargs: Mapping[str, Any] | None = None,
    *,
    call: Callable[[], Any] | None = None,
    layers_to_save: str | int | Sequence[str | int] | None = "all",
    random_seed: int | None = None,
    activation_postfunc: Callable[[Tensor], Tensor] | None = None,
    save_raw_activation: bool = True,
    train_mode: bool = False,
    save_gradients: bool = False,
) -> ModelHistory:
    """Run a model once and log every operation: values, functions, parents, modules, layers.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> history = log_forward_pass(model, torch.ones(2, 4))
    >>> history["relu_1_2"].activation.shape
    torch.Size([2, 8])

    Arguments:
        model: a module, or a dict name -> module together with ``call``.
        input_args: one positional argument, or a tuple or list of them.
        input_kwargs: keyword arguments.
        call: a function without arguments that uses the model in any way, in place of inputs.
        layers_to_save: ``"all"``, None (or ``"none"``, an empty list), or keys of a history and parts of labels, one or
            a list: ``["conv2d_3_7", "features", -5, "linear"]``. A selection takes a second pass, in which the model
            has to run the same operations; the first one leaves no traces in buffers and random states.
        random_seed: set before the pass; the random state is put back after it. None leaves the state alone, and the
            seed that is reported is the one that torch was last seeded with.
        activation_postfunc: a function of each saved value; its results are the ``transformed_activation``.
        save_raw_activation: save values themselves too where there is an ``activation_postfunc``.
        train_mode: saved values stay attached to autograd.
        save_gradients: keep the gradients that later backward passes bring to saved values.

    Returns a ModelHistory. An error of the model passes through.
    """
    check_inputs(input_args, call)
    roots = roots_of(model)
    if call is None and len(roots) > 1:
        raise OptionError(
            f"there are several roots ({', '.join(map(repr, roots))}), and inputs are for one; "
            "run them with call=lambda: ..."
        )
    spec = CaptureSpec(
        keep_grad=train_mode,
        transform=activation_postfunc,
        save_raw=save_raw_activation,
        save_gradient=save_gradients,
    )
    run = PassRunner(roots, input_args, input_kwargs or {}, call, random_seed)
    if layers_to_save == "all":
        return run(All(), spec)
    selectors = _selectors(layers_to_save)
    if not selectors:
        return run((), CaptureSpec())
    if call is not None:
        history = run(All(), spec)
        history.forget_all_but(history.keys.selected(selectors))
        return history
    with restored(roots.values()), random_state_restored():
        first = run((), CaptureSpec())
    wanted = first.keys.selected(selectors)
    return run(wanted, spec)


def get_model_metadata(
    model: nn.Module | Mapping[str, nn.Module],
    input_args: Any = NOT_GIVEN,
    input_kwargs: Mapping[str, Any] | None = None,
    *,
    call: Callable[[], Any] | None = None,
    random_seed: int | None = None,
) -> ModelHistory:
    """Log every operation of a forward pass without saving any value.

    >>> import torch
    >>> from fastrec.graph import get_model_metadata
    >>> metadata = get_model_metadata(torch.nn.Linear(4, 8), torch.ones(2, 4))
    >>> metadata["linear_1_1"].tensor_shape, metadata["linear_1_1"].activation
    ((2, 8), None)

    Arguments are those of log_forward_pass. Returns a ModelHistory.
    """
    return log_forward_pass(model, input_args, input_kwargs, call=call, layers_to_save=None, random_seed=random_seed)


def _selectors(layers_to_save: str | int | Iterable[str | int] | None) -> list[str | int]:
    if layers_to_save is None or layers_to_save == "none":
        return []
    if isinstance(layers_to_save, str | int):
        return [layers_to_save]
    return list(layers_to_save)


class PassRunner:
    """Runs the pass that is to be logged."""

    def __init__(
        self,
        roots: dict[str, nn.Module],
        input_args: Any,
        input_kwargs: Mapping[str, Any],
        call: Callable[[], Any] | None,
        random_seed: int | None,
    ) -> None:
        self._roots = roots
        self._args = () if call is not None else args_of(input_args)
        self._kwargs = input_kwargs
        self._call = call
        self._seed = random_seed

    def __call__(self, keep: Container[int], spec: CaptureSpec) -> ModelHistory:
        """Run it once, and keep the values of some operations."""
        began = perf_counter()
        capture = Capture()
        saver = Saver(keep, spec, capture.gradients)
        listener = GraphListener(ModelState(self._roots), capture, saver, takes_inputs=self._call is not None)
        engine = EagerEngine(performs=True)
        with seeded(self._seed), _quiet_about_fusing():
            seed = torch.initial_seed() if self._seed is None else self._seed
            engine.open(self._roots, listener)
            try:
                capture.started = time.time()
                out = self._run(engine, listener)
                capture.ended = time.time()
            finally:
                engine.close()
            listener.outputs(out)
        history = ModelHistory(capture, self._roots, random_seed=seed)
        capture.seconds = perf_counter() - began
        return history

    def _run(self, engine: EagerEngine, listener: GraphListener) -> Any:
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
