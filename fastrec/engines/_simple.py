"""Modules of torch of which it is known which ops they run, so that nobody has to watch them.

A function mode is the dearest part of watching: torch asks it about every op. Where a module runs one op and returns
its value, that value tells the same, and where a module only calls others, there is nothing to see.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules import module as _torch_modules

_ONE_OP: tuple[type[nn.Module], ...] = (
    nn.AdaptiveAvgPool2d,
    nn.AvgPool2d,
    nn.CELU,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Dropout,
    nn.ELU,
    nn.Embedding,
    nn.Flatten,
    nn.GELU,
    nn.GroupNorm,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LayerNorm,
    nn.LeakyReLU,
    nn.Linear,
    nn.LogSoftmax,
    nn.MaxPool2d,
    nn.Mish,
    nn.ReLU,
    nn.SELU,
    nn.Sigmoid,
    nn.SiLU,
    nn.Softmax,
    nn.Softplus,
    nn.Tanh,
)
_FORWARDS: dict[type[nn.Module], Any] = {nn.Sequential: nn.Sequential.forward}
for _kind in _ONE_OP:
    _FORWARDS[_kind] = _kind.forward

# Torch keeps these objects for good, and only fills and empties them.
GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    _torch_modules._global_forward_hooks,
    _torch_modules._global_forward_pre_hooks,
    _torch_modules._global_backward_hooks,
    _torch_modules._global_backward_pre_hooks,
)


def runs_one_op(module: nn.Module) -> bool:
    """Whether a module runs one op and returns its value; whether it really did is seen when it first runs."""
    return type(module) is not nn.Sequential and _is_torchs_own(module)


def only_calls_others(module: nn.Module) -> bool:
    """Whether a module runs no op of its own."""
    if type(module) is not nn.Sequential or not _is_torchs_own(module):
        return False
    # A module whose class has a __call__ of its own does what it likes before its call is seen.
    children: Iterable[nn.Module | None] = module._modules.values()
    return {type(child).__call__ for child in children if child is not None} <= {nn.Module.__call__}


def _is_torchs_own(module: nn.Module) -> bool:
    # By the very class: a subclass, and so a parametrised module, does what it likes.
    kind: type[nn.Module] = type(module)
    return kind in _FORWARDS and kind.forward is _FORWARDS[kind]
