"""What depends on the version of torch: which versions are supported, and what some of them do that others do not.

    check_torch()                       # raises UnsupportedTorchError where torch is too old
    if func in TORCHS_OWN_OPS and is_called_by_torch(func):
        ...                             # torch runs it for itself, so it is no event of the model

Everything that is decided by a version number is decided here, once, with the versions and the reason. Whether the
compiled engine works is not decided by a number: ``_torch/dynamo.py`` looks for each part that it needs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch

from fastrec._errors import UnsupportedTorchError

OLDEST_TORCH = (2, 6)
"""Before 2.6 the guards on tensors and the stack of function modes have other names."""

OLDEST_COMPILED_TORCH = (2, 13)

COMPILED_TORCH = "2.13 to 2.15"
"""The versions with which the compiled engine was tested; older ones can't keep its code apart from the user's own."""


def version_of(text: str) -> tuple[int, int]:
    """The release that a version belongs to: (2, 13) for "2.13.0+cpu"."""
    match = re.match(r"(\d+)\.(\d+)", text)
    assert match is not None, text
    return int(match[1]), int(match[2])


TORCH_VERSION = version_of(torch.__version__)


def check_torch(version: str = torch.__version__) -> None:
    """Raise UnsupportedTorchError for a torch that is too old."""
    if version_of(version) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise UnsupportedTorchError(
            f"torch {version} is installed, which is too old for fastrec; install {oldest} or later, by "
            f"pip install 'torch>={oldest}'"
        )


# --- Ops that torch runs for itself ---------------------------------------------------------------------------------

# Torch's own Python code calls ops too. Most of it runs below a function that a mode sees as a whole. These calls do
# not: a mode would take them for ops of the model.
_CALLS_OF_TORCH: tuple[tuple[tuple[int, int], Callable[..., Any], str], ...] = (
    # Before 2.13: checkpointing without `use_reentrant` saves its inputs by a dummy tensor.
    ((2, 13), torch.empty, "torch.utils.checkpoint"),
    # Before 2.11: `torch.autograd.backward` makes the first gradients in view of the modes.
    ((2, 11), torch.ones_like, "torch.autograd"),
)

TORCHS_OWN_OPS: Mapping[Any, str] = {
    function: module for until, function, module in _CALLS_OF_TORCH if until > TORCH_VERSION
}
"""The functions that this torch calls for itself, with the module that does so. Models may call them as well."""


def is_called_by_torch(func: Any) -> bool:
    """Whether it was torch for itself, and not a model, that called an op whose function mode runs now."""
    frame = sys._getframe(1)
    # On the way are the mode, and other modes that were asked before it.
    while frame.f_back and (
        frame.f_code.co_name == "__torch_function__" or frame.f_globals.get("__name__", "").startswith("fastrec.")
    ):
        frame = frame.f_back
    return frame.f_globals.get("__name__") == TORCHS_OWN_OPS[func]


HIDES_BACKWARD_FROM_MODES = TORCH_VERSION < (2, 11)
"""Before 2.11, ``torch.autograd.backward`` hands itself to no mode, unlike ``Tensor.backward`` and later versions."""


def prepare_for_function_modes() -> None:
    """Run what would otherwise run ops under a function mode when it is first needed.

    Before 2.9, the import of ``torch._dynamo`` calls some seventy ops of tensors to learn their names. Checkpointing
    and optimizers import it when they first run, which may be inside of a pass. It takes seconds, so later versions,
    whose import runs no ops, are left to import it when they need it.
    """
    if TORCH_VERSION < (2, 9):
        import_module("torch._dynamo")
