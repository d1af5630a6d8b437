"""Logging one forward pass: the functions that users call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor, nn

from fastrec._errors import OptionError, RecordingExistsError
from fastrec._torch.state import random_state_restored, restored
from fastrec.events.capture import CaptureSpec
from fastrec.graph.diff import check_same_graph
from fastrec.graph.files import finish_history
from fastrec.graph.history import ModelHistory
from fastrec.graph.lookup import selectors_of
from fastrec.graph.pass_runner import PassRunner, uncompiled
from fastrec.graph.saving import Everything, SaveRequest, Stream, check_gradients
from fastrec.graph.structure import Graph
from fastrec.graph.tensor_file import TensorFile
from fastrec.graph.vis import VisRequest
from fastrec.session.inputs import NOT_GIVEN, roots_of


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
    detach_saved_tensors: bool = True,
    save_gradients: bool = False,
    save_activations_to: str | PathLike[str] | None = None,
    keep_activations_in_memory: bool = True,
    vis_mode: str | None = None,
    vis_nesting_depth: int | None = None,
    vis_path: str | PathLike[str] | None = None,
) -> ModelHistory:
    """Run a model once and log every operation: its value, function, parents, modules and layer.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> history = log_forward_pass(model, torch.ones(2, 4))
    >>> history["relu_1_2"].activation.shape
    torch.Size([2, 8])

    Arguments:
        model: a module, or a dict name -> module together with ``call``. In place of a compiled model, the model that
            ``torch.compile`` was given runs.
        input_args: one positional argument, or a tuple or list of them.
        input_kwargs: keyword arguments.
        call: a function without arguments that uses the model in any way, in place of inputs.
        layers_to_save: ``"all"``, None (or ``"none"``, an empty list), or one or several keys of a history or parts of
            labels: ``["conv2d_3_7", "features", -5, "linear"]``. A selection takes a second pass, in which the model
            has to run the same operations; the first one leaves no trace in buffers and random states.
        random_seed: set before the pass; the random state is restored after it. None leaves the state alone, and then
            ``random_seed_used`` is None.
        activation_postfunc: a function applied to each saved value; its results are the ``transformed_activation``.
        save_raw_activation: with an ``activation_postfunc``, save the values themselves too.
        train_mode: saved values stay attached to autograd; an error where no gradients can flow.
        detach_saved_tensors: False leaves saved values attached to autograd, without the checks of train_mode.
        save_gradients: keep the gradients that reach saved values in later backward passes.
        save_activations_to: an HDF5 file to which values are written as they appear, and the history at the end;
            ``load_history`` reads it.
        keep_activations_in_memory: with a file, False keeps no value in memory; the history reads them from the file.
        vis_mode: draw the graph too: ``"unrolled"``, a node for each operation, or ``"rolled"``, a node for each layer.
        vis_nesting_depth: how many levels of modules are open in the picture; None opens all.
        vis_path: the picture's file; None shows it in a notebook, and elsewhere writes ``modelgraph.svg``.

    Returns a ModelHistory. An error of the model passes through; its attribute ``history`` is the history of what ran
    until then.
    """
    vis = VisRequest.of(vis_mode, vis_nesting_depth, vis_path)
    model = uncompiled(model, by_call=call is not None)
    roots = roots_of(model)
    run = PassRunner(roots, input_args, input_kwargs, call, random_seed)
    check_gradients(train_mode=train_mode, save_gradients=save_gradients)
    spec = CaptureSpec(
        keep_grad=train_mode or not detach_saved_tensors,
        transform=activation_postfunc,
        save_raw=save_raw_activation,
        save_gradient=save_gradients,
    )
    if save_activations_to is None:
        if not keep_activations_in_memory:
            raise OptionError("keep_activations_in_memory=False needs a file: give save_activations_to='pass.h5'")
        history = _logged(run, roots, layers_to_save, spec, None)
        if vis is not None:
            vis.show(history)
        return history
    if spec.keep_grad and not keep_activations_in_memory:
        raise OptionError(
            "values that stay attached to autograd (train_mode) can only be kept in memory; leave out "
            "keep_activations_in_memory=False"
        )
    if Path(save_activations_to).exists():
        raise RecordingExistsError(f"{save_activations_to} exists; give another path, or remove it first")
    file = TensorFile(Path(save_activations_to)).create(overwrite=False)
    try:
        history = _logged(run, roots, layers_to_save, spec, Stream(file, keep_activations_in_memory))
        finish_history(history.contents(), file)
    except BaseException:
        file.abandon()
        raise
    if vis is not None:
        vis.show(history)
    return history


def _logged(
    run: PassRunner,
    roots: dict[str, nn.Module],
    layers_to_save: str | int | Sequence[str | int] | None,
    spec: CaptureSpec,
    stream: Stream | None,
) -> ModelHistory:
    try:
        return _log(run, roots, layers_to_save, spec, stream)
    except Exception as error:  # of the user's model
        if run.failed is not None:
            history = ModelHistory(run.failed, roots, SaveRequest(Everything(), spec))
            if stream is not None:
                history.forget_all_but(set())  # the file goes
            with suppress(AttributeError):  # a class without room for attributes goes without
                setattr(error, "history", history)  # noqa: B010 (no class declares it)
        raise


def _log(
    run: PassRunner,
    roots: dict[str, nn.Module],
    layers_to_save: str | int | Sequence[str | int] | None,
    spec: CaptureSpec,
    stream: Stream | None,
) -> ModelHistory:
    selectors = selectors_of(layers_to_save)
    first = None
    if layers_to_save == "all":
        request = SaveRequest(Everything(), spec)
    elif not selectors:
        request = SaveRequest()
    elif run.is_call:
        return _logged_and_selected(run, roots, selectors, spec, stream)
    else:
        with restored(roots.values()), random_state_restored():
            first = run(SaveRequest())
        request = SaveRequest(Graph(first).keys.select(selectors), spec)
    capture = run(msgspec.structs.replace(request, stream=stream))
    if first is not None:
        remedy = "a selection takes two passes that run alike; give layers_to_save='all'"
        check_same_graph(first, capture, remedy=remedy)
    return ModelHistory(capture, roots, request)


def _logged_and_selected(
    run: PassRunner,
    roots: dict[str, nn.Module],
    selectors: Sequence[str | int],
    spec: CaptureSpec,
    stream: Stream | None,
) -> ModelHistory:
    """Log everything, then drop what is not selected: a user's function must not run twice."""
    request = SaveRequest(Everything(), spec)
    history = ModelHistory(run(request), roots, request)
    history.forget_all_but(history.graph.keys.select(selectors))
    if stream is not None:
        stream.send_all(history.graph.ops)
    return history


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
