"""Modules that can't be called as most are, because watching them would change how they compute.

- Compiled and scripted modules run outside of Python: a function mode does not see their ops, and one that stays on the
  stack would make dynamo compile the user's code anew. They run without the mode, as one event.
- ``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention`` have a fused kernel, which they do not use under a
  function mode; the output then differs in the last bits. They run without the mode too, unless something inside is to
  be kept: then they run as others do, and a warning says so.

What runs inside of such a module may be seen in one pass and not in another, so it has a numbering of its own: labels
and indices outside do not depend on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from fastrec._errors import FastrecWarning, FusedKernelWarning
from fastrec._torch.dynamo import runs_compiled
from fastrec._torch.wrappers import unwrapped
from fastrec.engines.eager.modules import ModuleRegistry, TrackedModule
from fastrec.engines.eager.trie import TrieNode
from fastrec.events.sites import Frame, Site
from fastrec.ops.composites import forward_layer_types, inner_layer_types
from fastrec.ops.facts import op_facts


class SpecialModules:
    """Decides how such modules run.

    Arguments:
        registry: the modules of the roots.
        may_keep: whether something could be kept at a site.
        sees_ops: whether passes run under a function mode.
        warn: warns once per key that recording changes what is computed, or can't see it.
    """

    def __init__(
        self,
        registry: ModuleRegistry,
        may_keep: Callable[[Site], bool],
        *,
        sees_ops: bool,
        warn: Callable[..., None],
    ) -> None:
        self._registry = registry
        self._may_keep = may_keep
        self._sees_ops = sees_ops
        self._warn = warn
        self._answers: dict[Any, bool] = {}

    def decide(self, node: TrieNode, *, is_compiled: bool) -> None:
        """Decide how a module runs that is entered at a node, and is compiled or may take its fused path."""
        tracked = node.tracked
        assert tracked is not None
        keeps_inside = self._may_keep_inside(tracked, node.site.frames)
        node.is_opaque = is_compiled or not keeps_inside
        node.is_special = node.is_opaque or not self._sees_ops
        if keeps_inside and is_compiled:
            kind = "a ScriptModule" if isinstance(tracked.module, torch.jit.ScriptModule) else "compiled"
            self._warn(
                tracked.address,
                f"{tracked.name!r} is {kind} and runs inside of an eager model: the ops inside of it are not seen",
            )
        elif keeps_inside:
            self._warn(
                tracked.address,
                f"{tracked.name!r} ({tracked.frame.module_type}) has a kept site inside, so it runs without its fused "
                "kernel while it is recorded; its output may differ in the last bits",
                FusedKernelWarning,
            )

    def _may_keep_inside(self, tracked: TrackedModule, frames: tuple[Frame, ...]) -> bool:
        """Whether something could be kept inside of a module that is called with these modules around it."""
        key = (tracked, frames)
        if key not in self._answers:
            self._answers[key] = any(map(self._may_keep, self._sites_inside(tracked, frames)))
        return self._answers[key]

    def _sites_inside(self, tracked: TrackedModule, frames: tuple[Frame, ...]) -> Iterator[Site]:
        """All sites that there may be inside of a module, without running it: more rather than fewer."""
        below = list(self._registry.below(tracked, frames))
        for inner, stack in below:
            yield Site(inner.name, "module_exit", inner.layer_type, inner.frame.module_type, stack)
            yield Site(inner.input_prefix, "module_enter", inner.layer_type, inner.frame.module_type, stack)
        for layer_type in _layer_types_in([unwrapped(tracked.module), *(inner.module for inner, _ in below)]):
            for inner, stack in ((tracked, frames), *below):
                yield Site(f"{inner.address}/{layer_type}", "op", layer_type, layer_type, stack)


def is_compiled_or_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) or runs_compiled(module)


def _layer_types_in(modules: Iterable[nn.Module]) -> set[str]:
    """The types of all ops that may run in the forward passes of some modules, more rather than fewer."""
    types: set[str] = set()
    for module in modules:
        types |= forward_layer_types(type(module))
        if isinstance(module, nn.TransformerEncoderLayer) and not isinstance(module.activation, nn.Module):
            facts = op_facts(module.activation)
            types |= inner_layer_types(module.activation) | {facts.layer_type if facts else ""}
    return types


class WarnOnce:
    """Warns once per key."""

    def __init__(self, stacklevel: int) -> None:
        self._stacklevel = stacklevel
        self._keys: set[str] = set()

    def __call__(self, key: str, message: str, category: type[FastrecWarning] = FastrecWarning) -> None:
        if key not in self._keys:
            self._keys.add(key)
            warnings.warn(message, category, stacklevel=self._stacklevel)
