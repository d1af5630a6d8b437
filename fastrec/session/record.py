"""``fastrec.record``: a recorder for one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fastrec._torch.state import seeded
from fastrec.recording._recording import Recording
from fastrec.session.inputs import NOT_GIVEN, check_inputs
from fastrec.session.recorder import Recorder


def record(
    model: nn.Module | Mapping[str, nn.Module],
    input_args: Any = NOT_GIVEN,
    input_kwargs: Mapping[str, Any] | None = None,
    *,
    call: Callable[[], Any] | None = None,
    return_output: bool = False,
    **recorder_options: Any,
) -> Any:
    """Run a model once and keep what predicates ask for.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> recording = fastrec.record(model, torch.ones(2, 4), keep_op="relu")
    >>> recording["relu_1"][0].activation.shape
    torch.Size([2, 8])

    Arguments:
        model: a module, or a dict name -> module.
        input_args: one positional argument, or a tuple or list of them.
        input_kwargs: keyword arguments; alone, as ``input_kwargs=batch``, for a model that takes nothing else.
        call: a function without arguments that uses the model in any way, in place of inputs.
        return_output: return (output, recording).
        recorder_options: the options of Recorder.

    Returns a Recording.
    """
    check_inputs(input_args, input_kwargs, call)
    output = None
    with Recorder(model, **recorder_options) as rec:
        if call is None:
            output = rec.log(input_args, input_kwargs)
        else:
            with seeded(rec.options.random_seed), rec.region("call"):
                output = call()
    recording: Recording = rec.recording
    return (output, recording) if return_output else recording
