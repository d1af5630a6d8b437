"""Values that a collective is still bringing: tensor parallelism hands them on before they have arrived.

    arrived(value)      # the plain tensor, once it is there; any other value as it is

``RowwiseParallel`` gives such a value as its output. Its operations wait by themselves, as does this.
"""

from __future__ import annotations

import sys

from torch import Tensor

_MODULE = "torch.distributed._functional_collectives"
"""Looked at only where somebody has imported it: torch imports it for the first collective of this kind."""


def is_arriving(value: Tensor) -> bool:
    """Whether a value is an ``AsyncCollectiveTensor``."""
    if value.__class__ is Tensor:
        return False
    module = sys.modules.get(_MODULE)
    return module is not None and isinstance(value, module.AsyncCollectiveTensor)


def arrived(value: Tensor) -> Tensor:
    """The value, after its collective has ended where one is under way."""
    if not is_arriving(value):
        return value
    plain: Tensor = value.wait()  # type: ignore[attr-defined]
    return plain
