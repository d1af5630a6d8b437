"""Pictures of models and of passes: ``show_model_graph``, and what ``log_forward_pass(vis_mode=...)`` draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import msgspec
from torch import nn

from fastrec._torch.state import random_state_restored, restored
from fastrec.graph.draw.options import drawing_options
from fastrec.graph.draw.picture import SECONDS, Picture, picture_of, target_of
from fastrec.graph.history import ModelHistory
from fastrec.graph.log import get_model_metadata
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
