"""Modules of torch that compute with one fused kernel, unless a function mode watches them."""

from __future__ import annotations

from collections.abc import Iterable
from types import FunctionType

import torch
from torch import nn

from fastrec._ops import inner_layer_types, op_facts

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_FUSED_FORWARDS = frozenset(kind.forward for kind in _FUSED)


def may_fuse(module: nn.Module) -> bool:
    """Whether a module is one that has a fused path, with torch's own forward."""
    return isinstance(module, _FUSED) and type(module).forward in _FUSED_FORWARDS


def is_fused_now(module: nn.Module) -> bool:
    """Whether the fused path may be taken in this very call, so that it must run unwatched."""
    if module.training:
        return False
    return not torch.is_grad_enabled() or not any(p.requires_grad for p in module.parameters())


def layer_types_in(modules: Iterable[nn.Module]) -> frozenset[str]:
    """The types of all ops that may run in the forward passes of some modules, more rather than fewer."""
    found: set[str] = set()
    for module in modules:
        for function in vars(type(module)).values():
            if isinstance(function, FunctionType):
                found |= inner_layer_types(function)
        if isinstance(module, nn.TransformerEncoderLayer) and not isinstance(module.activation, nn.Module):
            facts = op_facts(module.activation)
            found |= inner_layer_types(module.activation) | {facts.layer_type if facts else ""}
    return frozenset(found)
