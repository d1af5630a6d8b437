"""The function mode that sees every op of a pass and walks the trie with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastrec._torch.internals import (
    function_mode_at,
    function_mode_count,
    graph_task_id,
    no_function_modes,
    pop_function_mode,
    push_function_mode,
)
from fastrec._torch.modes import current_modes, set_modes, unseen_by_dynamo
from fastrec._torch.trees import argument_leaves, leaves
from fastrec.engines._protocol import Listener, Tap
from fastrec.engines.eager.trie import PassCounters, RaisedStep, SourceStep, TrieNode
from fastrec.events.sites import Site
from fastrec.ops.composites import inner_layer_types
from fastrec.ops.facts import OpFacts, op_facts, opened

if TYPE_CHECKING:
    from fastrec.engines.eager.modules import TrackedModule


_ORDINARY = Site("", "op", "", "")

_START = TrieNode(_ORDINARY, None, None, None)

RUN_AUTOGRAD = frozenset({Tensor.backward, torch.autograd.backward, torch.autograd.grad})


class ThreadState(threading.local):
    """What a thread is doing: the mode of its pass, or a call that is not to be recorded."""

    mode: OpMode | None = None
    muted: bool = False
    spare: OpMode | None = None

    def mute(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function of which nothing is recorded, calls inside of it included."""
        mode, muted = self.mode, self.muted
        self.mode, self.muted = None, True
        try:
            return function(*args, **kwargs)
        finally:
            self.mode, self.muted = mode, muted


@unseen_by_dynamo
class OpMode(TorchFunctionMode):
    """Where one thread is in one pass."""

    def __init__(self, listener: Listener, thread: ThreadState, *, may_rest: bool) -> None:
        super().__init__()
        self.listener = listener
        self.thread = thread
        self.node = _START
        self._skipped: set[Any] = set()  # functions that are no event
        self.run: Any = None
        self.grown = 0
        self.on = False  # on the stack of modes
        self.may_rest = may_rest
        self._opening: Any = None  # the composite whose inside is about to run
        self._tally: PassCounters | None = None
        self._tally_at: TrieNode | None = None

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        following = self.node.following
        if func is following.step:
            out = func(*args, **kwargs) if kwargs else func(*args)
            if type(out) is Tensor:
                self.node = following
                tap = following.tap
                if tap is not None:
                    tap(self.run, out)
            else:
                self.spread(following, out, args)
            return out
        if func in self._skipped:
            return func(*args, **kwargs) if kwargs else func(*args)
        return self._look_up(func, args, kwargs or {})

    def _look_up(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is self._opening:
            return self._run_opened(func, args, kwargs)
        node = self.node
        following = node.edges.get(func)
        if following is None:
            return self._grow(func, args, kwargs)
        if following.opens is not None:
            return self._open(following, func, args, kwargs)
        node.following = following
        out = func(*args, **kwargs)
        self.arrive(following, out, args)
        return out

    def watch(self) -> None:
        """Be asked about every op of this thread."""
        push_function_mode(self)
        self.on = True

    def unwatch(self) -> None:
        """Be asked no more."""
        pop_function_mode()
        self.on = False

    def rest(self) -> bool:
        """Be asked no more for a while; False where that can't be, because a later mode stands before this one."""
        count = function_mode_count()
        if not count or function_mode_at(count - 1) is not self:
            return False
        pop_function_mode()
        self.on = False
        return True

    def begin(self, run: Any, root: TrieNode) -> None:
        """A pass begins at a root of the trie."""
        self.run = run
        self.node = root
        self._tally_at = None

    def spread(self, node: TrieNode, out: Any, args: tuple[Any, ...]) -> None:
        """Feed the leaves of an op's value that is no plain tensor; one without tensors is no event."""
        if out is None and node.site.layer_type == "setitem":
            out = args[0]  # what was written to is the value of `x[i] = y`, which returns nothing
        found = list(leaves(out))
        if found:
            self.node = node
            self.feed(node, found)

    def feed(self, node: TrieNode, found: Iterable[tuple[str, Tensor]]) -> None:
        """Feed the taps of the leaves of one value."""
        run = self.run
        for index, (path, value) in enumerate(found):
            tap = self._leaf_tap(node, path, index) if path else node.tap
            if tap is not None:
                _feed(tap, run, value)

    def _leaf_tap(self, node: TrieNode, path: str, index: int) -> Tap | None:
        if node.spread is None:
            node.spread = self.listener.may_keep(node.site)
        if not node.spread:
            return None
        if node.leaf_taps is None:
            node.leaf_taps = {}
        if path not in node.leaf_taps:
            node.leaf_taps[path] = self.listener.tap(node, _leaf_site(node.site, path, index))
        return node.leaf_taps[path]

    def feed_value(self, node: TrieNode, out: Any) -> None:
        """Feed the value of a module that returned."""
        if type(out) is Tensor:
            if node.tap is not None:
                _feed(node.tap, self.run, out)
        else:
            self.feed(node, leaves(out))

    def feed_arguments(self, node: TrieNode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Feed the arguments of a module that is entered."""
        self.feed(node, argument_leaves(args, kwargs))

    def tally(self) -> PassCounters:
        """What has been counted up to the current node."""
        if self._tally is None or self._tally_at is not self.node:
            self._tally = PassCounters.at(self.node)
            self._tally_at = self.node
        return self._tally

    def follow(self, before: TrieNode, node: TrieNode) -> None:
        """Count a new node, where the tally stood at the node before; else it is counted when needed."""
        if self._tally is not None and self._tally_at is before:
            self._tally.advance(node)
            self._tally_at = node

    def _add(self, node: TrieNode) -> TrieNode:
        """Put a new node in its place."""
        assert node.parent is not None
        self.grown += 1
        node.parent.put(node.step, node)
        return node

    def _add_module(self, node: TrieNode) -> TrieNode:
        # Here it is asked at once, so that modules of which nothing is kept cost one comparison.
        node.spread = self.listener.may_keep(node.site)
        return self._add(node)

    def _add_tapped(self, node: TrieNode) -> TrieNode:
        node.tap = self.listener.tap(node, node.site)
        return self._add(node)

    def _grow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if graph_task_id() != -1:  # autograd runs a part of the forward pass again
            return func(*args, **kwargs)
        before = self.node
        node = self.make(func)
        if node is None:
            if func in RUN_AUTOGRAD:  # what it calls again (checkpointing) is no event either
                return self.thread.mute(func, args, kwargs)
            self._skipped.add(func)
            return func(*args, **kwargs)
        out = self._look_up(func, args, kwargs)
        if self.node is node:
            self.follow(before, node)
        return out

    def make(self, func: Any) -> TrieNode | None:
        """Grow the trie by an op that runs now; None for a function that is no event."""
        before = self.node
        facts = op_facts(func)
        if facts is None:
            return None
        tally = self.tally()
        node = tally.op(facts, before, func)
        if facts.composite and self._may_open(node, facts, func):
            node.opens = tally.inside(before, facts)
        return self._add_tapped(node)

    def _may_open(self, node: TrieNode, facts: OpFacts, func: Any) -> bool:
        prefix = node.site.name
        return any(
            self.listener.may_keep(Site(f"{prefix}/{kind}", "op", kind, kind, node.site.frames))
            for kind in inner_layer_types(func)
        )

    def _open(self, node: TrieNode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a composite with its inside in view."""
        before, inside, parents = self.node, node.opens, self.run.parents
        assert inside is not None
        self.follow(before, inside)
        self.node = inside
        try:
            out = self._run_under(func, args, kwargs) if function_mode_count() else self._run_opened(func, args, kwargs)
        finally:
            if self._tally is not None and self._tally_at is self.node:
                self._tally.close_to(before.depth)
                self._tally_at = before
            self.node = before
            self.run.parents = parents
        self.arrive(node, out, args)
        return out

    def _run_opened(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._opening = None
        with self:
            return opened(func)(*args, **kwargs)

    def _run_under(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a composite under the other modes of this thread, each of which sees it as one op too."""
        before = current_modes()
        self._opening = func
        set_modes([self, *before])
        try:
            return func(*args, **kwargs)
        finally:
            self._opening = None
            set_modes(before)

    def arrive(self, node: TrieNode, out: Any, args: tuple[Any, ...]) -> None:
        """An op returned."""
        if type(out) is Tensor:
            self.node = node
            if node.tap is not None:
                node.tap(self.run, out)
        else:
            self.spread(node, out, args)

    def enter(self, known: TrackedModule, step: Any, *, sealed: bool) -> TrieNode | None:
        """Grow the trie by a module that is entered; None while autograd runs a forward again."""
        if graph_task_id() != -1:
            return None
        before = self.node
        node = self.tally().enter(known, before, sealed)
        node.step = step
        self._add_module(node)
        self.follow(before, node)
        return node

    def leave(self, entered: TrieNode) -> TrieNode:
        """Grow the trie by the return of a module."""
        assert entered.known is not None
        before = self.node
        node = self._add_module(self.tally().leave(entered.known, before, entered))
        if node.spread:
            node.tap = self.listener.tap(node, node.site)
        before.left = node
        self.follow(before, node)
        if entered.known.runs_one_op and self.may_rest and before.parent is entered and before.opens is None:
            entered.straight = before
            entered.quiet = True
        return node

    def returned_hidden(self, entered: TrieNode, out: Any) -> None:
        """A module returned of whose inside nothing was seen."""

    def raised(self, entered: TrieNode) -> None:
        """An exception left a module: close its frame, for the user's code may catch it and go on."""
        before, step = self.node, RaisedStep(entered.depth - 1)
        after = before.edges.get(step)
        if after is None:
            after = self.tally().raised(before, step)
            before.put(step, after)
            self.follow(before, after)
        self.node = after

    def source(self, step: SourceStep, name: str, func_name: str, value: Tensor) -> None:
        """An input or a buffer is read."""
        before = self.node
        node = before.edges.get(step)
        if node is None:
            node = self._add_tapped(self.tally().source(step, name, func_name, before))
            self.follow(before, node)
        self.node = node
        if node.tap is not None:
            node.tap(self.run, value)


def _feed(tap: Tap, run: Any, value: Tensor) -> None:
    """Feed a tap, of whose own operations the class of the value must see nothing."""
    if type(value) is Tensor:
        tap(run, value)
    else:
        with no_function_modes():
            tap(run, value)


def _leaf_site(site: Site, path: str, index: int) -> Site:
    """The site of one leaf of a nested value."""
    name = site.name
    if site.kind == "module_exit" and path.startswith(".") and not name.endswith(":out"):
        name += ":out"  # `a.b` is the address of a module, so a field of a value has to look different
    return msgspec.structs.replace(site, name=name + path, output_index=index, output_address=path)
