"""Modules that stand around another one: of the parallel wrappers, activation checkpointing and ``torch.compile``.

    unwrapped(DistributedDataParallel(model))  # model

A wrapper only forwards its call, so it has no address of its own: sites are named as in the model that the user wrote.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_WRAPPERS = (DistributedDataParallel, DataParallel)

# The names under which FSDP, activation checkpointing and torch.compile hold the module that they stand around.
_WRAPPED_NAMES = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of all wrappers; a module without wrappers is returned as it is."""
    while children := module._modules:
        # Names first: most modules are no wrappers, and to look at the class of each would take half of the time that
        # opening a recorder takes.
        if "module" in children and isinstance(module, _WRAPPERS):
            module = module.module
            continue
        wrapped = None if _WRAPPED_NAMES.isdisjoint(children.keys()) else _wrapped_child(module)
        if wrapped is None:
            break
        module = wrapped
    return module


def _wrapped_child(module: nn.Module) -> nn.Module | None:
    return next((child for name, child in module._modules.items() if name in _WRAPPED_NAMES and child), None)
