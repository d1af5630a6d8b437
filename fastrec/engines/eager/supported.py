"""What the eager engine can't record is refused when the session opens, never recorded wrongly or not at all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.parallel import DataParallel

from fastrec._errors import UnsupportedModelError
from fastrec._torch.dynamo import runs_compiled
from fastrec._torch.internals import OpOverload
from fastrec._torch.wrappers import unwrapped


def check_roots(roots: Mapping[str, nn.Module]) -> None:
    """Raise UnsupportedModelError for a root whose ops can't be seen."""
    for name, root in roots.items():
        description = f"the model {name!r}" if name else "the model"
        if isinstance(root, DataParallel) and len(root.device_ids) > 1:
            raise UnsupportedModelError(
                f"{description} is a DataParallel over {len(root.device_ids)} devices, whose replicas are new modules "
                "in every pass; record it on one device (Recorder(model.module)), or use DistributedDataParallel"
            )
        model = unwrapped(root)
        if runs_compiled(root) or runs_compiled(model):
            raise UnsupportedModelError(
                f"{description} is compiled with torch.compile, and the eager engine can't see inside compiled code; "
                "leave engine= out, or record the model that it was made from (model._orig_mod) and call that one"
            )
        if isinstance(model, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{description} is a ScriptModule, which runs outside of Python; record the module it was scripted from"
            )
        if _is_exported(model):
            raise UnsupportedModelError(
                f"{description} comes from torch.export, whose graph holds only low-level ops; record the module that "
                "it was exported from"
            )
        if _is_on_meta_device(model) and not _may_bring_its_weights(model):
            raise UnsupportedModelError(
                f"{description} lies on the meta device and computes no values; build or load it on a device that "
                "computes"
            )


def _is_exported(module: nn.Module) -> bool:
    if not isinstance(module, torch.fx.GraphModule):
        return False
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    return bool(calls) and all(isinstance(node.target, OpOverload) for node in calls)


def _is_on_meta_device(module: nn.Module) -> bool:
    first = next(module.parameters(), None)  # asked first, because models have many parameters, and few lie on meta
    return first is not None and first.is_meta and all(parameter.is_meta for parameter in module.parameters())


def _may_bring_its_weights(model: nn.Module) -> bool:
    """Whether something runs before the forward of a part, as in offloading tools that keep weights elsewhere."""
    return any(part._forward_pre_hooks or "forward" in part.__dict__ for part in model.modules())
