"""What a drawing shows: all options of all pictures, texts and pages, each declared once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import msgspec

from fastrec._errors import OptionError, did_you_mean

VisMode = Literal["unrolled", "rolled"]
Direction = Literal["down", "up", "right", "left"]
Buffers = Literal["all", "meaningful", "none"]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What normalizations keep in buffers; most people don't look for it."""


class DrawingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a drawing; ``drawing_options`` makes and checks them.

    Arguments:
        vis_mode: ``"unrolled"``, one node for each operation, or ``"rolled"``, one node for all passes of a layer.
        vis_nesting_depth: how many levels of modules are opened: 1 shows each top-level module as one node, 2 what
            is in those, and so on; None opens all.
        module: the address of a submodule that is drawn alone (``"layer2"``), or of one pass of it (``"block:2"``).
        fold_repeats: show three or more modules in a row that do the same as one, marked ``x12``.
        buffers: ``"all"``, ``"none"``, or ``"meaningful"``: those that are no running statistics of a normalization.
        show_checks: show the operations that only evaluate conditions.
        show_orphans: show operations that neither come from an input nor lead to an output.
        show_backward: show in blue along which values gradients came back, where gradients were saved.
        direction: which way the arrows point.
    """

    vis_mode: VisMode = "unrolled"
    vis_nesting_depth: int | None = None
    module: str | None = None
    fold_repeats: bool = False
    buffers: Buffers = "meaningful"
    show_checks: bool = True
    show_orphans: bool = False
    show_backward: bool = True
    direction: Direction = "down"

    def shows_buffer(self, address: str) -> bool:
        """Whether a buffer is shown."""
        if self.buffers == "meaningful":
            return address.rpartition(".")[2] not in STATISTICS
        return self.buffers == "all"


_CHOICES = {"vis_mode": VisMode, "buffers": Buffers, "direction": Direction}
_FLAGS = ("fold_repeats", "show_checks", "show_orphans", "show_backward")


def drawing_options(options: dict[str, Any]) -> DrawingOptions:
    """Options by name, checked.

    >>> drawing_options({"vis_mode": "rolled"}).vis_mode
    'rolled'

    Raises OptionError for a name or a value that does not exist, with the close ones.
    """
    for name, value in options.items():
        _check(name, value)
    return DrawingOptions(**options)


def _check(name: str, value: Any) -> None:
    if name not in DrawingOptions.__struct_fields__:
        raise OptionError(f"{name}= is no option of a drawing; {did_you_mean(name, DrawingOptions.__struct_fields__)}")
    if name in _CHOICES:
        check_choice(name, value, get_args(_CHOICES[name]))
    elif name in _FLAGS and not isinstance(value, bool):
        raise OptionError(f"{name}={value!r}: give True or False")
    elif name == "vis_nesting_depth" and not _is_depth(value):
        raise OptionError(
            f"vis_nesting_depth={value!r}: give a whole number from 1 up (1 shows each top-level module as one node), "
            "or None for all levels"
        )
    elif name == "module" and value is not None and not isinstance(value, str):
        raise OptionError(f"module={value!r}: give the address of a submodule as a string, such as 'layer2'")


def _is_depth(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise OptionError for a value that is none of some strings."""
    if value not in tuple(choices):
        raise OptionError(f"{name}={value!r} does not exist; {did_you_mean(str(value), choices)}")
