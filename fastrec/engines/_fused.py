"""Modules of torch that compute with one fused kernel, unless a function mode watches them."""

from __future__ import annotations

import functools

import torch
from torch import nn

from fastrec._ops import inner_layer_types

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_FUSED_FORWARDS = frozenset(kind.forward for kind in _FUSED)


def may_fuse(module: nn.Module) -> bool:
    """Whether a module is one that has a fused path, with torch's own forward."""
    return type(module).forward in _FUSED_FORWARDS


def is_fused_now(module: nn.Module) -> bool:
    """Whether the fused path may be taken in this very call, so that it must run unwatched."""
    if module.training:
        return False
    return not torch.is_grad_enabled() or not any(p.requires_grad for p in module.parameters())


@functools.cache
def fused_layer_types() -> frozenset[str]:
    """The types of all ops that may run inside of these modules, more rather than fewer."""
    functions = [
        function
        for kind in _FUSED
        for function in vars(kind).values()
        if callable(function) and not isinstance(function, type)
    ]
    found: set[str] = set()
    for function in functions:
        found |= inner_layer_types(function)
    return frozenset(found)
