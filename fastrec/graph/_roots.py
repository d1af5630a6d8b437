"""The models whose pass is logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fastrec._errors import UnsupportedModelError
from fastrec.engines.eager.modules import is_compiled_wrapper

Models = nn.Module | Mapping[str, nn.Module]


def uncompiled(model: Models, *, by_call: bool) -> Models:
    """A model or several by name; in place of one that ``torch.compile`` made, that which it was made from.

    A user's own function calls what it calls, so there nothing can be put in place of a compiled model.
    """
    if isinstance(model, nn.Module):
        found: nn.Module = _uncompiled("the model", model, by_call)
        return found
    if isinstance(model, Mapping):
        return {name: _uncompiled(f"the model {name!r}", root, by_call) for name, root in model.items()}
    return model


def _uncompiled(called: str, model: Any, by_call: bool) -> Any:
    if not isinstance(model, nn.Module) or not is_compiled_wrapper(model):
        return model
    if by_call:
        raise UnsupportedModelError(
            f"{called} is compiled with torch.compile, and a graph can't see inside of compiled code; give the model "
            "that it was made from (model._orig_mod), and call that one in call="
        )
    return model._orig_mod
