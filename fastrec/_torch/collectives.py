"""Tensor parallelism: values that a collective is still bringing, and modules that compute a part of each value.

    arrived(value)                    # the plain tensor, once it is there; any other value as it is
    tensor_parallel_modules(model)    # {"up": "Shard(dim=0)", "down": "Shard(dim=1)"}

``RowwiseParallel`` gives a value that has not arrived yet as its output. Its operations wait by themselves, as does
``arrived``. ``ColwiseParallel`` gives a plain tensor in which nothing tells that it is a part.
"""

from __future__ import annotations

import sys

from torch import Tensor, nn

# Looked at only where somebody has imported them: torch imports the first one for the first collective of its kind, the
# others where a model is sharded.
_MODULE = "torch.distributed._functional_collectives"
_SHARDED = "torch.distributed.tensor"
_FSDP = "torch.distributed.fsdp"


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


def tensor_parallel_modules(root: nn.Module) -> dict[str, str]:
    """The modules, by address, that compute with a shard of a parameter, and how it is placed on the mesh.

    Under FSDP (``fully_shard``) a parameter is whole while its module runs, so one shard over the mesh is FSDP's own;
    a second one is tensor parallelism.
    """
    sharded, fsdp = sys.modules.get(_SHARDED), sys.modules.get(_FSDP)
    if sharded is None:
        return {}
    own_shards: dict[str, int] = {}  # how many shards of a module's parameters are those of FSDP
    result = {}
    for address, module in root.named_modules():
        outer = own_shards.get(address.rpartition(".")[0], 0) if address else 0
        own_shards[address] = 1 if fsdp is not None and isinstance(module, fsdp.FSDPModule) else outer
        for parameter in module.parameters(recurse=False):
            if isinstance(parameter, sharded.DTensor):
                shards = [placement for placement in parameter.placements if placement.is_shard()]
                if len(shards) > own_shards[address]:
                    result[address] = repr(shards[-1])
    return result
