"""What the eager engine can't record is refused when the session opens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel

from fastrec._errors import UnsupportedModelError
from fastrec._torch.internals import OpOverload
from fastrec._torch.wrappers import runs_compiled, unwrapped
from fastrec.engines._protocol import Listener
from fastrec.engines.eager.modules import ModuleRegistry, TrackedModule, layer_types_in
from fastrec.events.sites import Frame, Site


def check_roots(roots: Mapping[str, nn.Module]) -> None:
    """Raise UnsupportedModelError for a root whose ops can't be seen."""
    for name, root in roots.items():
        called = f"the model {name!r}" if name else "the model"
        if isinstance(root, DataParallel) and len(root.device_ids) > 1:
            raise UnsupportedModelError(
                f"{called} is a DataParallel over {len(root.device_ids)} devices, whose replicas are new modules in "
                "every pass; record it on one device (Recorder(model.module)), or use DistributedDataParallel"
            )
        inner = unwrapped(root)
        if runs_compiled(root) or runs_compiled(inner):
            raise UnsupportedModelError(
                f"{called} is compiled with torch.compile, and the eager engine can't see inside compiled code; "
                "leave engine= out, or record the model that it was made from (model._orig_mod) and call that one"
            )
        if isinstance(inner, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{called} is a ScriptModule, which runs outside of Python; record the module it was scripted from"
            )
        if _is_exported(inner):
            raise UnsupportedModelError(
                f"{called} comes from torch.export, whose graph holds only low-level ops; record the module that it "
                "was exported from"
            )
        first = next(inner.parameters(), None)
        if first is not None and first.is_meta and all(p.is_meta for p in inner.parameters()):
            raise UnsupportedModelError(
                f"{called} lies on the meta device and computes no values; move it with model.to_empty(device=...)"
            )


def _is_exported(module: nn.Module) -> bool:
    if not isinstance(module, torch.fx.GraphModule):
        return False
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    return bool(calls) and all(isinstance(node.target, OpOverload) for node in calls)


class InnerSites:
    """Tells of a module whether something could be kept inside of it, without running it."""

    def __init__(self, table: ModuleRegistry, listener: Listener) -> None:
        self._table = table
        self._listener = listener
        self._kept: dict[Any, bool] = {}

    def is_kept(self, known: TrackedModule, frames: tuple[Frame, ...]) -> bool:
        """Whether something could be kept inside of a module that is called with these modules around it."""
        key = (known, frames)
        if key not in self._kept:
            self._kept[key] = any(map(self._listener.may_keep, self._sites(known, frames)))
        return self._kept[key]

    def _sites(self, known: TrackedModule, frames: tuple[Frame, ...]) -> Iterator[Site]:
        """All sites that there may be inside of a module, more rather than fewer."""
        below = list(self._table.below(known, frames))
        for k, stack in below:
            yield Site(k.name, "module_exit", k.layer_type, k.frame.module_type, stack)
            yield Site(k.input_prefix, "module_enter", k.layer_type, k.frame.module_type, stack)
        for kind in layer_types_in([unwrapped(known.module), *(k.module for k, _ in below)]):
            for k, stack in ((known, frames), *below):
                yield Site(f"{k.address}/{kind}", "op", kind, kind, stack)
