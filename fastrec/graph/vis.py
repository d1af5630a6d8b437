"""The picture that ``log_forward_pass(vis_mode=...)`` makes of the pass that it logged.

A notebook shows it; anywhere else it is written to ``vis_path``, or to ``modelgraph.svg`` in the working folder.
"""

from __future__ import annotations

import sys
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from fastrec._errors import OptionError, RecordingExistsError
from fastrec.graph.draw.options import drawing_options
from fastrec.graph.draw.picture import Target, target_of
from fastrec.graph.history import ModelHistory

DEFAULT_PATH = "modelgraph.svg"

SIGNATURE = b"<!-- drawn by fastrec -->\n"
"""The end of a picture under the default name, by which it may be replaced when the next pass is logged."""


class VisRequest(msgspec.Struct, frozen=True):
    """A picture that is wanted: with which options, and where to; without a target a notebook shows it."""

    options: dict[str, Any]
    target: Target | None

    @classmethod
    def of(
        cls, vis_mode: str | None, vis_nesting_depth: int | None, vis_path: str | PathLike[str] | None
    ) -> VisRequest | None:
        """Check what the user gave, before anything is run; None where no picture is wanted."""
        if vis_mode in (None, "none"):
            for name, value in (("vis_nesting_depth", vis_nesting_depth), ("vis_path", vis_path)):
                if value is not None:
                    raise OptionError(
                        f"{name}={value!r} is about a picture, and none is drawn; give vis_mode='unrolled' or 'rolled'"
                    )
            return None
        options = {"vis_mode": vis_mode, "vis_nesting_depth": vis_nesting_depth}
        drawing_options(options)
        if vis_path is not None:
            return cls(options, target_of(vis_path, None, overwrite=False))
        if in_notebook():
            return cls(options, None)
        path = Path(DEFAULT_PATH)
        if path.exists() and not path.read_bytes().endswith(SIGNATURE):
            raise RecordingExistsError(f"{path} exists, and fastrec did not draw it; say with vis_path= where to draw")
        return cls(options, Target(path, "svg"))

    def show(self, history: ModelHistory) -> None:
        """Show or write the picture of a history."""
        if self.target is None:
            from IPython.display import display

            display(history.draw(**self.options))
        elif self.target.path == Path(DEFAULT_PATH):
            self.target.path.write_bytes(history.draw(**self.options).content + SIGNATURE)
        else:
            history.draw(self.target.path, format=self.target.format, **self.options)


def in_notebook() -> bool:
    """Whether a notebook shows what is displayed."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)
