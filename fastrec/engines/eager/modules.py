"""The modules of the recorded roots by identity, with the addresses that sites are named by."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from fastrec._torch.internals import call_impl
from fastrec._torch.wrappers import is_compiled_wrapper, unwrapped
from fastrec.events.sites import Frame
from fastrec.ops.composites import forward_layer_types, inner_layer_types
from fastrec.ops.facts import op_facts

_MAX_ALIASES = 16


class TrackedModule:
    """A module of a root: its address (the root's name first where roots have names) and how it is written.

    One that is replaced by another of its class stays what it is, with the other module.
    """

    __slots__ = (
        *("address", "aliases", "frame", "kind", "layer_type", "may_fuse", "module", "name", "only_calls"),
        *("calls_forward", "runs_one_op"),
    )

    def __init__(self, module: nn.Module, address: str) -> None:
        self.module = module
        self.address = address
        self.aliases: list[str] = []
        self.name = address or ":out"
        self.frame = Frame(address, type(unwrapped(module)).__name__)
        self.layer_type = self.frame.module_type.lower().replace("_", "")
        self.may_fuse = may_fuse(module)
        self.kind = type(module)
        self.calls_forward = self.kind._call_impl is call_impl
        self.only_calls = False  # as the scan finds it, for it may change
        self.runs_one_op = runs_one_op(module)

    @property
    def input_prefix(self) -> str:
        return f"{self.address}:in"


class ModuleRegistry:
    """Looks modules up by identity; the modules themselves are not touched."""

    def __init__(self, roots: Mapping[str, nn.Module]) -> None:
        self._roots = dict(roots)
        self.known: dict[int, TrackedModule] = {}
        self._foreign: dict[int, weakref.ref[nn.Module]] = {}
        self._lock = threading.Lock()
        self.moved = False  # whether a scan has found a module at another address, or with other children
        self.scan()

    def scan(self) -> None:
        """Take in all modules that the roots hold now, and let go of those that they hold no more."""
        found: dict[int, tuple[nn.Module, list[str]]] = {}
        for root_name, root in self._roots.items():
            _visit(root, root_name, found, set())
        gone = {}
        for key, known in list(self.known.items()):
            if key not in found or known.address not in found[key][1]:
                del self.known[key]
                self.moved |= key in found
                gone[known.address, type(known.module)] = known
        for key, (module, addresses) in found.items():
            known = self.known.get(key) or gone.get((addresses[0], type(module))) or TrackedModule(module, addresses[0])
            known.module = module
            only_calls = only_calls_others(module)
            self.moved |= known.only_calls and not only_calls
            known.only_calls = only_calls
            aliases = [address for address in addresses if address != known.address]
            if aliases != known.aliases:
                known.aliases = aliases
                known.frame = Frame(known.address, known.frame.module_type, tuple(aliases))
            self.known[key] = known
            self._foreign.pop(key, None)

    def find_late(self, module: nn.Module) -> TrackedModule | None:
        """A module that was made or replaced during the session; None for one that belongs to no root."""
        seen = self._foreign.get(id(module))
        if seen is not None and seen() is module:
            return None
        with self._lock:
            self.scan()
            known = self.known.get(id(module))
            if known is None:
                self._foreign[id(module)] = weakref.ref(module, partial(self._forget, id(module)))
        return known

    def below(
        self, known: TrackedModule, frames: tuple[Frame, ...]
    ) -> Iterator[tuple[TrackedModule, tuple[Frame, ...]]]:
        """The modules below a known one, each with the frames from the outermost to its own."""
        for child in unwrapped(known.module)._modules.values():
            inner = child and self.known.get(id(unwrapped(child)))
            if inner and inner.frame not in frames:
                yield inner, (*frames, inner.frame)
                yield from self.below(inner, (*frames, inner.frame))

    def _forget(self, key: int, _: weakref.ref[nn.Module]) -> None:
        self._foreign.pop(key, None)

    def frames(self) -> list[Frame]:
        """What all known modules are called."""
        return [known.frame for known in self.known.values()]


def _visit(module: nn.Module, address: str, found: dict[int, tuple[nn.Module, list[str]]], above: set[int]) -> None:
    """Find a module and all below it, with their addresses; a compiled one beside the one that it was made from."""
    if is_compiled_wrapper(module):
        found.setdefault(id(module), (module, [address]))
    module = unwrapped(module)
    key = id(module)
    _, addresses = found.setdefault(key, (module, []))
    # One that is shared in so many places is not looked into again: such places multiply from level to level.
    if key in above or len(addresses) > _MAX_ALIASES:
        return
    if address not in addresses:
        addresses.append(address)
    if module._modules:
        above.add(key)
        for name, child in module._modules.items():
            if child is not None:
                _visit(child, f"{address}.{name}" if address else name, found, above)
        above.remove(key)


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
        found |= forward_layer_types(type(module))
        if isinstance(module, nn.TransformerEncoderLayer) and not isinstance(module.activation, nn.Module):
            facts = op_facts(module.activation)
            found |= inner_layer_types(module.activation) | {facts.layer_type if facts else ""}
    return frozenset(found)
