"""Modules that stand around another one: what ``torch.compile`` and the parallel wrappers make.

    unwrapped(DistributedDataParallel(model))  # model

A wrapper forwards its call and has no address of its own: sites are named as in the model that the user wrote.
``torch._dynamo`` is slow to import, and nothing can be compiled where nobody has imported it, so it is looked for among
the loaded modules and never imported here.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_WRAPPERS = (DistributedDataParallel, DataParallel)

# Under these names FSDP, activation checkpointing and torch.compile hold the module that they stand around.
_WRAPPED_NAMES = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

ORIGINAL_FUNCTION = "_torchdynamo_orig_callable"
"""Under this name compiled code holds the function that it was made from."""


def is_compiled_wrapper(module: nn.Module) -> bool:
    """Whether a module is what ``torch.compile`` made of another one."""
    # torch._dynamo is slow to import, and nothing can be compiled where nobody has imported it.
    dynamo = "_orig_mod" in module._modules and sys.modules.get("torch._dynamo.eval_frame")
    return bool(dynamo) and isinstance(module, dynamo.OptimizedModule)  # type: ignore[union-attr]


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of wrappers that only forward calls (DDP, DataParallel, FSDP, activation checkpointing)."""
    while children := module._modules:
        # Most modules are none, and to ask for the class of each would take half of the time that opening takes.
        if "module" in children and isinstance(module, _WRAPPERS):
            module = module.module
            continue
        inner = None if _WRAPPED_NAMES.isdisjoint(children.keys()) else _inner(module)
        if inner is None:
            break
        module = inner
    return module


def _inner(module: nn.Module) -> nn.Module | None:
    return next((child for name, child in module._modules.items() if name in _WRAPPED_NAMES and child), None)


def runs_compiled(module: nn.Module) -> bool:
    """Whether a module's forward pass is compiled by ``torch.compile``."""
    if "torch._dynamo" not in sys.modules:
        return False
    if is_compiled_wrapper(module) or module._compiled_call_impl is not None:
        return True
    forward: Any = module.__dict__.get("forward") or getattr(type(module), "forward", None)
    return ORIGINAL_FUNCTION in getattr(forward, "__dict__", {})


def keep_out_of_compiling() -> bool:
    """Have torch.compile step over this package, whose mode it meets where a compiled function is called in a pass."""
    rules = sys.modules.get("torch._dynamo.trace_rules")
    if rules is not None:
        rules.add("fastrec")
    return rules is not None
