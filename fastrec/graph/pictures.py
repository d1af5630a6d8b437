"""Pictures of models: ``show_model_graph``, and ``preview`` of what a recorder would keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import msgspec
from torch import nn

from fastrec._torch.state import random_state_restored, restored
from fastrec.dryrun.dry_run import dry_run_in_region
from fastrec.graph.draw.options import drawing_options
from fastrec.graph.draw.picture import SECONDS, Picture, picture_of, target_of
from fastrec.graph.history import ModelHistory
from fastrec.graph.log import get_model_metadata
from fastrec.graph.previews import Preview
from fastrec.session.inputs import NOT_GIVEN, roots_of


def show_model_graph(  # noqa: PLR0913
    model: nn.Module | Mapping[str, nn.Module],
    input_args: Any = NOT_GIVEN,
    input_kwargs: Mapping[str, Any] | None = None,
    *,
    call: Callable[[], Any] | None = None,
    random_seed: int | None = None,
    path: str | PathLike[str] | None = None,
    format: str | None = None,
    seconds: float = SECONDS,
    overwrite: bool = False,
    **options: Any,
) -> Picture:
    """Run a model once and draw its graph, without saving any value.

    >>> import torch
    >>> from fastrec.graph import show_model_graph
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> picture = show_model_graph(model, torch.ones(2, 4), vis_mode="rolled", format="dot")
    >>> '"relu_1_2" -> "output_1"' in picture.text
    True

    Arguments:
        model, input_args, input_kwargs, call, random_seed: as for log_forward_pass. Buffers and random states are
            what they were afterwards.
        path: a file to write the picture to; its ending tells the format: ``.svg``, ``.pdf``, ``.png``, ``.dot``,
            ``.mmd`` (Mermaid).
        format: ``"svg"`` (which needs nothing installed), ``"dot"``, ``"mermaid"``, or one that Graphviz draws:
            ``"pdf"``, ``"png"``, ``"graphviz"`` (its own SVG).
        seconds: how long Graphviz may take.
        overwrite: replace a file that is there; else that is a RecordingExistsError.
        options: ``vis_mode`` (``"unrolled"``, ``"rolled"``), ``vis_nesting_depth`` (how many levels of modules are
            open), ``module`` (draw one submodule alone), ``fold_repeats``, ``buffers``, ``show_checks``,
            ``show_orphans``, ``show_backward``, ``direction``; see DrawingOptions.

    Returns a Picture, which notebooks show. The visual code is that of the paper (Taylor and Kriegeskorte, 2023,
    doi:10.1038/s41598-023-40807-0). Of a model that raises, what ran is drawn, with the operation that failed in
    red; the exception passes through, and its ``picture`` is that drawing.
    """
    target, checked = target_of(path, format, overwrite=overwrite), drawing_options(options)

    def drawn(history: ModelHistory) -> Picture:
        drawing = history.drawing(**msgspec.structs.asdict(checked))
        return picture_of(drawing, target, seconds=seconds, overwrite=overwrite)

    try:
        with restored(roots_of(model).values()), random_state_restored():
            history = get_model_metadata(model, input_args, input_kwargs, call=call, random_seed=random_seed)
    except Exception as error:
        if "history" in vars(error):  # the model raised, and not the check of what was given
            vars(error)["picture"] = drawn(vars(error)["history"])
        raise
    return drawn(history)


def preview(
    model: nn.Module | Mapping[str, nn.Module],
    input_args: Any = NOT_GIVEN,
    input_kwargs: Mapping[str, Any] | None = None,
    *,
    call: Callable[[], Any] | None = None,
    **recorder_options: Any,
) -> Preview:
    """Run a model, and show on its graph what a recorder with these options would keep of such a pass.

    >>> import torch
    >>> from fastrec.graph import preview
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> seen = preview(model, torch.zeros(2, 4), keep_op="tanh")
    >>> seen
    <Preview of Sequential: 1 of 12 events kept: 64 B per pass, 62.5 KiB per 1,000 passes>
    >>> seen.kept
    ['1/tanh']
    >>> '"tanh_1_2"' in seen.draw(format="dot").text
    True

    Arguments:
        model, input_args, input_kwargs, call, recorder_options: as for fastrec.dry_run; ``keep_op``, ``keep_module``
            and the other options of Recorder.

    The model runs twice, and so does ``call``: once for what is kept, once for the graph. Buffers, flags, gradients and
    random states are afterwards what they were. Returns a Preview.
    """
    dry = dry_run_in_region(model, input_args, input_kwargs, call, recorder_options)
    seed = recorder_options.get("random_seed")
    with restored(roots_of(model).values()), random_state_restored():
        history = get_model_metadata(model, input_args, input_kwargs, call=call, random_seed=seed)
    return Preview(history, dry)
