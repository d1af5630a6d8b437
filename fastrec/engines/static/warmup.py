"""What the static engine learns from its first passes, which run eagerly.

For each kept value it has to know two things: whether a module returns it, so that it can be taken from the call, and
whether it is still the same when the pass ends, so that it need not be copied at once. Neither can be told from the
code, so the values themselves are watched: a ``WarmupTap`` before each tap of the listener tells the ``WarmupPass`` of
its thread what it was fed with, and the wrapper of module calls tells it what each module returned. ``Warmup`` holds
what all passes agree about.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastrec._torch.internals import functorch_level, no_function_modes
from fastrec._torch.tensors import has_memory, have_sole_owner, own_their_storage, run_outside_dispatch_modes
from fastrec._torch.trees import leaves
from fastrec.engines._protocol import Listener, Run, Tap
from fastrec.engines.eager.trie import TrieNode
from fastrec.events.position import Position
from fastrec.events.sites import Site


class WarmupThread(threading.local):
    """The warm-up pass that a thread is in, if any."""

    warmup_pass: WarmupPass | None = None


class WarmupTap:
    """Tells the warm-up pass of this thread of each value, and feeds the listener's tap."""

    __slots__ = ("position", "tap", "thread")

    def __init__(self, tap: Tap[Any], position: Position, thread: WarmupThread) -> None:
        self.tap = tap
        self.position = position
        self.thread = thread

    def __call__(self, run: Any, value: Tensor) -> None:
        warmup_pass = self.thread.warmup_pass
        if warmup_pass is not None:
            warmup_pass.on_value(self, value)
        self.tap(run, value)


TapAtPath = tuple[WarmupTap, str]
"""A tap, and the path at which a module returned the value that it was fed with."""


class WarmupListener:
    """Stands between the machinery of eager passes and the listener, so that values come by here.

    ``on_end`` is called when a pass ends, before the listener is told.
    """

    def __init__(
        self, listener: Listener[Any], thread: WarmupThread, on_end: Callable[[Run, BaseException | None], None]
    ) -> None:
        self._listener = listener
        self._thread = thread
        self._on_end = on_end
        self.may_keep = listener.may_keep
        self.begin = listener.begin

    def tap(self, position: Position, site: Site) -> Tap[Any] | None:
        """The listener's tap, with the watch before it."""
        tap = self._listener.tap(position, site)
        return None if tap is None else WarmupTap(tap, position, self._thread)

    def end(self, run: Any, error: BaseException | None) -> bool:
        """A pass ended."""
        self._on_end(run, error)
        return self._listener.end(run, error)


class Snapshot(NamedTuple):
    """What a value was like: how often it had been written to, and a copy."""

    version: int | None
    copy: Tensor

    @classmethod
    def of(cls, value: Tensor) -> Snapshot:
        with no_function_modes(), torch.no_grad():
            return cls(_version(value), run_outside_dispatch_modes(_detached_clone, value))


def _detached_clone(value: Tensor) -> Tensor:
    return value.detach().clone()


def is_unchanged(value: Tensor, snapshot: Snapshot) -> bool:
    """Whether a value is still what it was."""
    version, copy = snapshot
    if _version(value) != version or value.shape != copy.shape or value.is_complex() or not has_memory(value):
        return False
    # To the bit, because numpy and .data write without a trace in the version.
    with no_function_modes(), torch.no_grad():
        return run_outside_dispatch_modes(partial(_has_equal_bits, copy), value)


def _has_equal_bits(copy: Tensor, value: Tensor) -> bool:
    bits, old_bits = (_packed(tensor).reshape(-1) for tensor in (value, copy))
    return torch.equal(bits.view(torch.uint8), old_bits.view(torch.uint8)) if bits.numel() else True


def _packed(value: Tensor) -> Tensor:
    """A copy with the strides of its shape: those of a single row mean nothing to `contiguous`, and much to `view`."""
    return torch.empty(value.shape, dtype=value.dtype, device=value.device).copy_(value.detach())


def _version(value: Tensor) -> int | None:
    return None if value.is_inference() else value._version


class WarmupPass:
    """Watches in one pass which ops gave what their module then returned, and which values nobody writes to later.

    ``fed`` are the taps that got a value, ``unusual`` those of them whose value was no plain tensor or came in as an
    argument. ``outputs`` are the ops whose values their module returned.
    """

    def __init__(self) -> None:
        self.fed: set[WarmupTap] = set()
        self.unusual: set[WarmupTap] = set()
        self.outputs: dict[TrieNode, list[TapAtPath]] = {}
        self._values: list[tuple[WarmupTap, Tensor, Snapshot]] = []
        # Of the last op alone, because only what the last op gave can be what its module returns next:
        self._op: Position | None = None
        self._op_values: list[tuple[WarmupTap, Tensor, Snapshot]] = []
        self._op_is_unusual = False

    def on_value(self, tap: WarmupTap, value: Tensor) -> None:
        """A tap is fed."""
        site = tap.position.site
        is_usual = type(value) is Tensor and functorch_level() is None and site.kind != "module_enter"
        self.fed.add(tap)
        if is_usual:
            self._values.append((tap, value, Snapshot.of(value)))
        else:
            self.unusual.add(tap)
        if site.kind == "op":
            if tap.position is not self._op:
                self._forget_op()
                self._op = tap.position
            if is_usual:
                self._op_values.append(self._values[-1])
            else:
                self._op_is_unusual = True

    def on_return(self, exit_node: TrieNode, module: nn.Module, out: Any) -> None:
        """A module returned, which led to a node."""
        op = exit_node.parent
        if exit_node.tracked is not None and exit_node.tracked.module is module and op is not None and op is self._op:
            paths = {id(value): path for path, value in reversed(list(leaves(out)))}
            is_output = all(
                id(value) in paths and is_unchanged(value, snapshot) for _, value, snapshot in self._op_values
            )
            if is_output and not self._op_is_unusual:
                self.outputs[op] = [(tap, paths[id(value)]) for tap, value, _ in self._op_values]
        self._forget_op()

    def lasting(self) -> dict[WarmupTap, int]:
        """The taps whose values are at the end of the pass what they were, and nobody else's; with their versions.

        What somebody else has by then, such as the output of the model, may be written to by whoever has it. It can be
        asked once.
        """
        versions = {}
        for tap, version, values in self._take_unchanged():
            if version is None or not have_sole_owner(values) or not own_their_storage(values):
                continue
            if values[0].nbytes == values[0].untyped_storage().nbytes():  # and not a small view of a large storage
                versions[tap] = version
        return versions

    def _take_unchanged(self) -> list[tuple[WarmupTap, int | None, list[Tensor]]]:
        # Each value in a list of its own, which alone has it: owners are counted, and this object must be none.
        self._op_values.clear()
        values, self._values = self._values, []
        return [(tap, snapshot.version, [value]) for tap, value, snapshot in values if is_unchanged(value, snapshot)]

    def _forget_op(self) -> None:
        self._op, self._op_is_unusual = None, False
        self._op_values.clear()


class Warmup:
    """What all warm-up passes of a route agree about.

    ``fed``, ``unusual`` and ``outputs`` are as in each pass. ``lasting`` are the taps whose values nobody writes to
    before the pass ends, with the versions that these have then.
    """

    def __init__(self) -> None:
        self.fed: set[WarmupTap] = set()
        self.unusual: set[WarmupTap] = set()
        self.outputs: dict[TrieNode, list[TapAtPath]] = {}
        self.lasting: dict[WarmupTap, int] = {}
        self._is_empty = True

    def add(self, warmup_pass: WarmupPass) -> None:
        """A pass has ended that ran as those before it."""
        outputs, lasting = warmup_pass.outputs, warmup_pass.lasting()
        if not self._is_empty:
            outputs = {op: taps for op, taps in outputs.items() if self.outputs.get(op) == taps}
            lasting = {tap: version for tap, version in lasting.items() if self.lasting.get(tap) == version}
        self.fed |= warmup_pass.fed
        self.unusual |= warmup_pass.unusual
        self.outputs, self.lasting, self._is_empty = outputs, lasting, False
