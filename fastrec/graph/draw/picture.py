"""Pictures: a drawing in one of the formats, in memory or in a file.

picture = picture_of(drawing, path="net.svg")
picture.content            # what is in the file
picture                    # in a notebook: shown
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from fastrec._errors import OptionError, RecordingFileError, did_you_mean
from fastrec._web.document import check_free
from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.dot import dot_text
from fastrec.graph.draw.graphviz import rendered
from fastrec.graph.draw.mermaid import mermaid_text
from fastrec.graph.draw.options import check_choice

Format = Literal["svg", "graphviz", "pdf", "png", "dot", "mermaid"]

SUFFIXES: Mapping[str, Format] = {
    ".svg": "svg",
    ".pdf": "pdf",
    ".png": "png",
    ".dot": "dot",
    ".gv": "dot",
    ".mmd": "mermaid",
    ".mermaid": "mermaid",
}

MIME_TYPES: Mapping[Format, str] = {
    "svg": "image/svg+xml",
    "graphviz": "image/svg+xml",
    "png": "image/png",
    "pdf": "application/pdf",
    "mermaid": "text/vnd.mermaid",
}

SECONDS = 60.0


class Target(NamedTuple):
    """Where a picture goes, and in which format."""

    path: Path | None
    format: Format


def target_of(path: str | PathLike[str] | None, format: str | None, *, overwrite: bool) -> Target:
    """A path and a format, checked before anything is run.

    Raises OptionError for a format that does not exist or that the path's ending does not tell, and
    RecordingExistsError for a path where there is a file.
    """
    if format is not None:
        check_choice("format", format, get_args(Format))
    if path is None:
        return Target(None, _format(format or "svg"))
    target = Path(path)
    if format is None:
        if target.suffix.lower() not in SUFFIXES:
            near = did_you_mean(target.suffix.lower(), SUFFIXES)
            raise OptionError(f"{os.fspath(path)!r} does not end like a picture, and format= is not given; {near}")
        format = SUFFIXES[target.suffix.lower()]
    check_free(target, overwrite=overwrite)
    return Target(target, _format(format))


def _format(name: str) -> Format:
    return next(known for known in get_args(Format) if known == name)


class Picture(msgspec.Struct, frozen=True):
    """A drawing in one format; a notebook shows it.

    >>> import torch
    >>> from fastrec.graph import show_model_graph
    >>> picture = show_model_graph(torch.nn.ReLU(), torch.ones(2), format="dot")
    >>> picture.text.splitlines()[0]
    'digraph {'

    ``content`` is what a file of this format holds, ``path`` the file that it was written to, if any.
    """

    content: bytes
    format: Format
    path: Path | None = None

    @property
    def text(self) -> str:
        """The content as text; of a PDF or PNG there is none."""
        if self.format in ("pdf", "png"):
            raise OptionError(f"a picture in the format {self.format!r} is no text; read its content, or draw another")
        return self.content.decode()

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write the picture to a file, as it is: the path's ending changes nothing.

        >>> import tempfile, torch
        >>> from fastrec.graph import show_model_graph
        >>> picture = show_model_graph(torch.nn.ReLU(), torch.ones(2), format="mermaid")
        >>> picture.save(tempfile.mkdtemp() + "/relu.mmd")

        Arguments:
            path: of the new file.
            overwrite: take the place of a file that is there; else that is a RecordingExistsError.
        """
        target = Path(path)
        check_free(target, overwrite=overwrite)
        try:
            target.write_bytes(self.content)
        except OSError as error:
            raise RecordingFileError(f"{os.fspath(target)!r} can't be written: {error.strerror or error}") from error

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        mime = MIME_TYPES.get(self.format)
        if mime is None:
            return {"text/plain": self.text}
        return {mime: self.content if self.format in ("pdf", "png") else self.text, "text/plain": repr(self)}

    def __repr__(self) -> str:
        where = f" at {self.path}" if self.path is not None else ""
        return f"<Picture in the format {self.format}{where}: {len(self.content):,} bytes>"


def draw(
    make: Callable[[], Drawing],
    path: str | PathLike[str] | None,
    format: str | None,
    *,
    seconds: float,
    overwrite: bool,
) -> Picture:
    """What the ``draw`` methods do: check where the picture goes, and only then make the drawing."""
    target = target_of(path, format, overwrite=overwrite)
    return picture_of(make(), target, seconds=seconds, overwrite=overwrite)


def picture_of(drawing: Drawing, target: Target, *, seconds: float = SECONDS, overwrite: bool = False) -> Picture:
    """A drawing as a picture, written to the target's path if it has one."""
    picture = Picture(_WRITERS[target.format](drawing, seconds), target.format, target.path)
    if target.path is not None:
        picture.save(target.path, overwrite=overwrite)
    return picture


def _own_svg(drawing: Drawing, seconds: float) -> bytes:
    from fastrec.graph.draw.svg import svg_of

    return svg_of(drawing).encode()


_WRITERS: Mapping[Format, Callable[[Drawing, float], bytes]] = {
    "svg": _own_svg,
    "graphviz": lambda drawing, seconds: rendered(drawing, "svg", seconds=seconds),
    "pdf": lambda drawing, seconds: rendered(drawing, "pdf", seconds=seconds),
    "png": lambda drawing, seconds: rendered(drawing, "png", seconds=seconds),
    "dot": lambda drawing, seconds: dot_text(drawing).encode(),
    "mermaid": lambda drawing, seconds: mermaid_text(drawing).encode(),
}
