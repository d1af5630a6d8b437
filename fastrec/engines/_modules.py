"""The modules of the recorded roots by identity, with the addresses that sites are named by."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import partial

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from fastrec._sites import Frame
from fastrec.engines._fused import may_fuse

_TRANSPARENT = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_WRAPPERS = (DistributedDataParallel, DataParallel)
_MOST_ALIASES = 16


class Known:
    """A module of a root: its address (the root's name first where roots have names) and how it is written."""

    __slots__ = ("address", "aliases", "frame", "layer_type", "may_fuse", "module", "name")

    def __init__(self, module: nn.Module, address: str) -> None:
        self.module = module
        self.address = address
        self.aliases: list[str] = []
        self.name = address or ":out"
        self.frame = Frame(address, type(module).__name__)
        self.layer_type = self.frame.module_type.lower().replace("_", "")
        self.may_fuse = may_fuse(module)

    @property
    def input_prefix(self) -> str:
        return f"{self.address}:in"


class ModuleTable:
    """Looks modules up by identity; the modules themselves are not touched."""

    def __init__(self, roots: Mapping[str, nn.Module]) -> None:
        self._roots = dict(roots)
        self.known: dict[int, Known] = {}
        self._foreign: dict[int, weakref.ref[nn.Module]] = {}
        self.scan()

    def scan(self) -> None:
        """Take in all modules that the roots hold now."""
        for root_name, root in self._roots.items():
            self._visit(root, root_name, set())

    def _visit(self, module: nn.Module, address: str, above: set[int]) -> None:
        """Take in a module and all below it; one in several places has an alias for each but the first."""
        module = unwrapped(module)
        key = id(module)
        if key in above:
            return
        known = self.known.get(key)
        if known is None:
            self.known[key] = Known(module, address)
            self._foreign.pop(key, None)
        elif known.address != address and address not in known.aliases and len(known.aliases) < _MOST_ALIASES:
            known.aliases.append(address)
            known.frame = Frame(known.address, known.frame.module_type, tuple(known.aliases))
        if module._modules:
            above.add(key)
            for name, child in module._modules.items():
                if child is not None:
                    self._visit(child, f"{address}.{name}" if address else name, above)
            above.remove(key)

    def find_late(self, module: nn.Module) -> Known | None:
        """A module that was made or replaced during the session; None for one that belongs to no root."""
        seen = self._foreign.get(id(module))
        if seen is not None and seen() is module:
            return None
        self.scan()
        known = self.known.get(id(module))
        if known is None:
            self._foreign[id(module)] = weakref.ref(module, partial(self._forget, id(module)))
        return known

    def _forget(self, key: int, _: weakref.ref[nn.Module]) -> None:
        self._foreign.pop(key, None)

    def frames(self) -> list[Frame]:
        """What all known modules are called."""
        return [known.frame for known in self.known.values()]


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of wrappers that only forward calls (DDP, DataParallel, FSDP, activation checkpointing)."""
    while True:
        if isinstance(module, _WRAPPERS):
            module = module.module
            continue
        inner = None if _TRANSPARENT.isdisjoint(module._modules) else _inner(module)
        if inner is None:
            return module
        module = inner


def _inner(module: nn.Module) -> nn.Module | None:
    return next((module._modules[name] for name in _TRANSPARENT if module._modules.get(name) is not None), None)
