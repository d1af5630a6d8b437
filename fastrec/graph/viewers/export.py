"""The formats by name, and the one function that writes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

from fastrec._errors import OptionError, RecordingFileError, did_you_mean
from fastrec._web.document import check_free
from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.options import check_choice
from fastrec.graph.viewers.chrome_trace import chrome_trace
from fastrec.graph.viewers.graphml import graphml
from fastrec.graph.viewers.model_explorer import model_explorer
from fastrec.graph.viewers.onnx_graph import onnx_graph

ViewerFormat = Literal["model-explorer", "onnx", "graphml", "chrome-trace"]

FORMATS: Mapping[ViewerFormat, Callable[[Drawing], bytes]] = {
    "model-explorer": model_explorer,
    "onnx": onnx_graph,
    "graphml": graphml,
    "chrome-trace": chrome_trace,
}
"""What makes the content of a file of each format."""

SUFFIXES: Mapping[str, ViewerFormat] = {".onnx": "onnx", ".graphml": "graphml"}


def export_drawing(
    drawing: Callable[[], Drawing], path: str | PathLike[str], format: str | None, *, overwrite: bool
) -> None:
    """Write a drawing as a file of another viewer.

    Arguments:
        drawing: makes it, once the path and the format are known to be right.
        path: of the new file.
        format: one of ``FORMATS``; None takes it from the ending ``.onnx`` or ``.graphml``.
        overwrite: replace a file that is there.

    Raises OptionError for a format that does not exist or that the path does not tell, RecordingExistsError where there
    is a file, RecordingFileError where none can be written, and MissingExtraError where a package is missing.
    """
    target = Path(path)
    name = _format(target, format)
    check_free(target, overwrite=overwrite)
    content = FORMATS[name](drawing())
    try:
        target.write_bytes(content)
    except OSError as error:
        raise RecordingFileError(f"{target} can't be written: {error.strerror or error}") from error


def _format(path: Path, format: str | None) -> ViewerFormat:
    if format is not None:
        check_choice("format", format, get_args(ViewerFormat))
        return next(name for name in get_args(ViewerFormat) if name == format)
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(
            f"{os.fspath(path)!r} does not tell the format; give format=: "
            f"{did_you_mean(path.suffix.lower().removeprefix('.'), get_args(ViewerFormat))}"
        )
    return SUFFIXES[path.suffix.lower()]
