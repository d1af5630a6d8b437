"""Modules that can't be called as most are, because watching them would change how they compute.

- Compiled and scripted modules run outside of Python: a function mode does not see their ops, and one that stays on the
  stack would make dynamo compile the user's code anew. They run without the mode, as one event.
- ``nn.TransformerEncoder``, its layers and ``nn.MultiheadAttention`` have a fused kernel, which they do not use under a
  function mode; the output then differs in the last bits. They run without the mode too, unless something inside is to
  be kept: then they run as others do, and a warning says so.
- With a mask the output may differ in more than the last bits: fused, an encoder sets padded rows to zero, a row in
  which everything is masked is not NaN, and a layer takes any mask for one of yes and no. It depends on the values, so
  such a call runs once more, fused, and is refused if its output differs.

What runs inside of such a module may be seen in one pass and not in another, so it has a numbering of its own: labels
and indices outside do not depend on it.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fastrec._errors import FastrecWarning, FusedKernelWarning, UnsupportedModelError
from fastrec._torch.dynamo import runs_compiled
from fastrec._torch.internals import no_function_modes
from fastrec._torch.trees import leaves
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
        allow_unfused: whether a module may compute something else than it would with its fused kernel.
        warn: warns once per key that recording changes what is computed, or can't see it.
    """

    def __init__(
        self,
        registry: ModuleRegistry,
        may_keep: Callable[[Site], bool],
        *,
        sees_ops: bool,
        allow_unfused: bool,
        warn: Callable[..., None],
    ) -> None:
        self._registry = registry
        self._may_keep = may_keep
        self._sees_ops = sees_ops
        self._allow_unfused = allow_unfused
        self._warn = warn
        self._answers: dict[Any, bool] = {}

    def decide(self, node: TrieNode, *, is_compiled: bool) -> None:
        """Decide how a module runs that is entered at a node, and is compiled or may take its fused path."""
        tracked = node.tracked
        assert tracked is not None
        keeps_inside = self._may_keep_inside(tracked, node.site.frames)
        node.is_opaque = is_compiled or not keeps_inside
        # One of several such modules around each other is enough to be compared.
        node.is_compared = not (node.is_opaque or self._allow_unfused or _is_inside_compared(node))
        node.is_special = node.is_opaque or node.is_compared or not self._sees_ops
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

    def run_compared(
        self,
        tracked: TrackedModule,
        run_fused: Callable[[], Any],
        run_opened: Callable[[], Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Run a module without its fused kernel; UnsupportedModelError where that changes more than the last bits."""
        masks, is_nested = _masks_in(unwrapped(tracked.module), args, kwargs)
        if is_nested:
            raise _refusal(tracked, "its fused kernel takes a nested tensor, which it does not take otherwise")
        if not masks:
            return run_opened()
        expected, out = run_fused(), run_opened()
        if not _is_equal_up_to_rounding(expected, out):
            raise _refusal(tracked, f"with {' and '.join(masks)} its output would differ in more than the last bits")
        return out

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


def _is_inside_compared(node: TrieNode) -> bool:
    around = node.parent
    while around is not None:
        # A module that has returned is around nothing; its depth tells that it is no longer open.
        if around.is_compared and around.tracked is not None and around.tracked.frame in node.site.frames[:-1]:
            return True
        around = around.parent
    return False


_MASKS = ("mask", "src_mask", "src_key_padding_mask", "key_padding_mask", "attn_mask")


@cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)


def _masks_in(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[str], bool]:
    """The names of the masks that a call is given, and whether it is given a nested tensor."""
    try:
        arguments = _signature(type(module).forward).bind(module, *args, **kwargs).arguments
    except TypeError:  # which torch will say better
        return [], False
    with no_function_modes():
        is_nested = any(isinstance(value, Tensor) and value.is_nested for value in arguments.values())
    return [name for name in _MASKS if arguments.get(name) is not None], is_nested


def _is_equal_up_to_rounding(expected: Any, actual: Any) -> bool:
    with no_function_modes(), torch.no_grad():
        values, others = dict(leaves(expected)), dict(leaves(actual))
        return values.keys() == others.keys() and all(_are_close(values[path], others[path]) for path in values)


def _are_close(a: Tensor, b: Tensor) -> bool:
    tolerance = math.sqrt(torch.finfo(a.dtype).eps)
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def _refusal(tracked: TrackedModule, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{tracked.name!r} ({tracked.frame.module_type}) has a kept site inside, so it would run without its fused "
        f"kernel while it is recorded, and {why}. Keep {tracked.name!r} itself and nothing inside, run the model with "
        "gradients enabled, where torch does not use the kernel, or accept it with allow_unfused=True"
    )


def is_compiled_or_scripted(module: nn.Module) -> bool:
    """Whether nothing inside of a module can be watched, because it runs as compiled or scripted code."""
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
