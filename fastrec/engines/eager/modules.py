"""The modules of the recorded roots by identity, and what is known of each.

    registry = ModuleRegistry({"": model})
    registry.by_id[id(module)].address          # "blocks.0.attn"
    registry.find_late(module)                  # one that was made or replaced since: scans the roots again
    registry.refresh()                          # have modules moved since? asked when a pass begins

A module is looked up by its id at every call, so the table lies outside of the modules: what is put on a module would
be pickled and copied with it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from fastrec._torch.dynamo import is_compiled_wrapper
from fastrec._torch.internals import call_impl
from fastrec._torch.wrappers import unwrapped
from fastrec.events.sites import Frame

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules whose children have numbers or keys for names, so that one moves when another is deleted or inserted."""

MAX_ALIASES = 16
"""Addresses of one module after which those below it are no longer followed: shared modules multiply by level."""


class TrackedModule:
    """A module of a root: its address, which begins with the root's name where roots have names, and how it is written.

    One that another of its class replaces stays what it is, with the other module.
    """

    __slots__ = (
        *("module", "module_class", "address", "aliases", "name", "input_prefix", "frame", "layer_type"),
        *("calls_forward", "has_fused_path", "runs_no_ops", "runs_one_op"),
    )

    def __init__(self, module: nn.Module, address: str) -> None:
        self.module = module
        self.module_class = type(module)
        self.address = address
        self.aliases: list[str] = []
        self.name = address or ":out"
        self.input_prefix = f"{address}:in"
        self.frame = Frame(address, type(unwrapped(module)).__name__)
        self.layer_type = self.frame.module_type.lower().replace("_", "")
        self.calls_forward = self.module_class._call_impl is call_impl
        self.has_fused_path = has_fused_path(module)
        self.runs_no_ops = False  # set by each scan, because children can be replaced
        self.runs_one_op = runs_one_op(module)


class ModuleRegistry:
    """Finds the tracked module of a module."""

    def __init__(self, roots: Mapping[str, nn.Module]) -> None:
        self._roots = dict(roots)
        self.by_id: dict[int, TrackedModule] = {}
        self._strangers: dict[int, weakref.ref[nn.Module]] = {}
        self._lock = threading.Lock()
        self._lists: list[tuple[nn.Module, list[nn.Module | None]]] = []
        self._lazy: list[TrackedModule] = []
        self.has_moved = False  # whether a scan has found a module at another address, or with other children
        self.scan()

    def scan(self) -> None:
        """Take in all modules that the roots hold now, and let go of those that they hold no more."""
        addresses_of: dict[int, tuple[nn.Module, list[str]]] = {}
        for root_name, root in self._roots.items():
            _visit(root, root_name, addresses_of, set())
        replaceable = {}
        for key, tracked in list(self.by_id.items()):
            is_another_class = type(tracked.module) is not tracked.module_class  # a lazy module after its first call
            if key not in addresses_of or tracked.address not in addresses_of[key][1] or is_another_class:
                del self.by_id[key]
                self.has_moved |= key in addresses_of
                if not is_another_class:
                    replaceable[tracked.address, type(tracked.module)] = tracked
        for key, (module, addresses) in addresses_of.items():
            address = addresses[0]
            tracked = self.by_id.get(key) or replaceable.get((address, type(module))) or TrackedModule(module, address)
            tracked.module = module
            runs_no_ops = only_calls_children(module)
            self.has_moved |= tracked.runs_no_ops and not runs_no_ops
            tracked.runs_no_ops = runs_no_ops
            aliases = [alias for alias in addresses if alias != tracked.address]
            if aliases != tracked.aliases:
                tracked.aliases = aliases
                tracked.frame = Frame(tracked.address, tracked.frame.module_type, tuple(aliases))
            self.by_id[key] = tracked
            self._strangers.pop(key, None)
        modules = [(tracked, unwrapped(tracked.module)) for tracked in self.by_id.values()]
        self._lists = [(module, list(module._modules.values())) for _, module in modules if isinstance(module, _LISTS)]
        self._lazy = [tracked for tracked, module in modules if isinstance(module, LazyModuleMixin)]

    def refresh(self) -> bool:
        """Scan again if modules have moved in a list or became of another class; whether any has another address now.

        Where a model calls its modules in another order than before, ``is_in_place`` finds out; this is for what can't
        be seen from the calls, as where the first layers were deleted that were not called anyway.
        """
        for module, children in self._lists:
            if list(module._modules.values()) != children:
                break
        else:
            if not any(type(tracked.module) is not tracked.module_class for tracked in self._lazy):
                return False
        with self._lock:
            self.scan()
        return self.has_moved

    def is_in_place(self, tracked: TrackedModule, module: nn.Module) -> bool:
        """Whether a module is still at its address."""
        for name, root in self._roots.items():
            if name and tracked.address != name and not tracked.address.startswith(f"{name}."):
                continue
            path = tracked.address[len(name) :].lstrip(".")
            part: nn.Module | None = unwrapped(root)
            for step in path.split(".") if path else ():
                child = None if part is None else part._modules.get(step)
                part = None if child is None else unwrapped(child)
            if part is unwrapped(module):
                return True
        return False

    def find_moved(self, module: nn.Module) -> TrackedModule | None:
        """A module that is no longer at the address at which it was found; None where it belongs to no root now."""
        with self._lock:
            self.scan()
        return self.by_id.get(id(module))

    def find_late(self, module: nn.Module) -> TrackedModule | None:
        """A module that was made or replaced during the session; None for one that belongs to no root.

        Those that belong to none are remembered, weakly, so that each costs one scan.
        """
        stranger = self._strangers.get(id(module))
        if stranger is not None and stranger() is module:
            return None
        with self._lock:
            self.scan()
            tracked = self.by_id.get(id(module))
            if tracked is None:
                self._strangers[id(module)] = weakref.ref(module, partial(self._forget, id(module)))
        return tracked

    def below(
        self, tracked: TrackedModule, frames: tuple[Frame, ...]
    ) -> Iterator[tuple[TrackedModule, tuple[Frame, ...]]]:
        """The modules below one, each with the frames from the outermost to its own."""
        for child in unwrapped(tracked.module)._modules.values():
            inner = child and self.by_id.get(id(unwrapped(child)))
            if inner and inner.frame not in frames:
                yield inner, (*frames, inner.frame)
                yield from self.below(inner, (*frames, inner.frame))

    def classes(self) -> set[type[nn.Module]]:
        """Of which classes the modules are."""
        return {tracked.module_class for tracked in self.by_id.values()}

    def frames(self) -> list[Frame]:
        """What all modules are called."""
        return [tracked.frame for tracked in self.by_id.values()]

    def _forget(self, key: int, _: weakref.ref[nn.Module]) -> None:
        self._strangers.pop(key, None)


def _visit(
    module: nn.Module, address: str, addresses_of: dict[int, tuple[nn.Module, list[str]]], above: set[int]
) -> None:
    """Find a module and all below it, with their addresses; a compiled one beside the one that it was made from."""
    if is_compiled_wrapper(module):
        addresses_of.setdefault(id(module), (module, [address]))
    module = unwrapped(module)
    key = id(module)
    _, addresses = addresses_of.setdefault(key, (module, []))
    if key in above or len(addresses) > MAX_ALIASES:
        return
    if address not in addresses:
        addresses.append(address)
    if module._modules:
        above.add(key)
        for name, child in module._modules.items():
            if child is not None:
                _visit(child, f"{address}.{name}" if address else name, addresses_of, above)
        above.remove(key)


# --- What is known of torch's own classes ---------------------------------------------------------------------------

# Modules of these classes need no function mode inside: one op runs, and its value is what the module returns.
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

_SIMPLE: tuple[type[nn.Module], ...] = (nn.Sequential, *_ONE_OP)

_FORWARDS: dict[type[nn.Module], Any] = {cls: cls.forward for cls in _SIMPLE}


def runs_one_op(module: nn.Module) -> bool:
    """Whether a module should run one op and return its value; whether it does is seen when it first runs."""
    return type(module) is not nn.Sequential and _has_torchs_forward(module)


def only_calls_children(module: nn.Module) -> bool:
    """Whether a module runs no op of its own."""
    if type(module) is not nn.Sequential or not _has_torchs_forward(module):
        return False
    # A child whose class has its own __call__ may run ops in it, before the wrapper of module calls sees the child.
    children: Iterable[nn.Module | None] = module._modules.values()
    return {type(child).__call__ for child in children if child is not None} <= {nn.Module.__call__}


def _has_torchs_forward(module: nn.Module) -> bool:
    # By the very class: a subclass, and so a parametrised module, may do anything. A class whose forward somebody has
    # replaced may too.
    cls: type[nn.Module] = type(module)
    return cls in _FORWARDS and cls.forward is _FORWARDS[cls]


_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)

_FUSED_FORWARDS = frozenset(cls.forward for cls in _FUSED)


def has_fused_path(module: nn.Module) -> bool:
    """Whether a module has a fused kernel that it does not use under a function mode; only with torch's own forward."""
    return isinstance(module, _FUSED) and type(module).forward in _FUSED_FORWARDS


def may_fuse_now(module: nn.Module) -> bool:
    """Whether the fused path may be taken in this very call, so that it must run without a mode."""
    if module.training:
        return False
    return not torch.is_grad_enabled() or not any(parameter.requires_grad for parameter in module.parameters())
