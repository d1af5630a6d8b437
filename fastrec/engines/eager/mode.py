"""The function mode that sees every op of a pass, and walks the trie with it.

    mode.begin(run, trie.root)
    mode.push_mode()
    model(x)        # torch calls the mode for each function, and the wrapper of module calls tells it of each module
    mode.pop_mode()

``__torch_function__`` is called for each op of a recorded model, so it does as little as possible: if the function is
the one that came next last time, the tap of that node is fed, and that is all. What is new takes the long way through
``_look_up`` and ``_grow``, once.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor

from fastrec._errors import FastrecWarning
from fastrec._torch.internals import (
    function_mode_at,
    function_mode_count,
    graph_task_id,
    no_function_modes,
    pop_function_mode,
    push_function_mode,
)
from fastrec._torch.modes import RecorderMode, current_modes, set_modes, unseen_by_dynamo
from fastrec._torch.trees import argument_leaves, leaves, unread_classes
from fastrec._torch.versions import TORCHS_OWN_OPS, is_called_by_torch
from fastrec.engines._protocol import Listener, Tap
from fastrec.engines.eager.modules import TrackedModule
from fastrec.engines.eager.trie import NO_NODE, PassCounters, RaisedStep, SourceStep, TrieNode
from fastrec.events.sites import Site
from fastrec.ops.composites import inner_layer_types
from fastrec.ops.facts import op_facts, opened

ResultT = TypeVar("ResultT")

RUN_AUTOGRAD = frozenset({Tensor.backward, torch.autograd.backward, torch.autograd.grad})


class ThreadState(threading.local):
    """What a thread is doing: the pass that it is in, if any, and whether recording is switched off.

    ``spare`` is the mode of the pass that ended last, still at its last event. The next pass takes it, because making a
    mode takes longer than a small op.
    """

    mode: OpMode | None = None
    recording_disabled: bool = False
    spare: OpMode | None = None

    def run_unrecorded(self, function: Callable[..., ResultT], /, *args: Any, **kwargs: Any) -> ResultT:
        """Run a function without recording anything that it calls."""
        mode, recording_disabled = self.mode, self.recording_disabled
        self.mode, self.recording_disabled = None, True
        try:
            return function(*args, **kwargs)
        finally:
            self.mode, self.recording_disabled = mode, recording_disabled


@unseen_by_dynamo
class OpMode(RecorderMode):
    """Where one thread is in one pass.

    ``node`` is the last event; ``run`` is what the listener made of the pass.
    """

    def __init__(self, listener: Listener[Any], thread: ThreadState, *, may_suspend: bool) -> None:
        super().__init__()
        self.listener = listener
        self.thread = thread
        self.may_suspend = may_suspend
        self.node: TrieNode = NO_NODE
        self.run: Any = None
        self.new_nodes = 0  # since somebody counted them
        self.on_stack = False
        self._no_events: set[Any] = set()  # functions that are no event, such as getters
        self._opening: Any = None  # the composite whose inside is about to run
        self._counters: PassCounters | None = None
        self._counters_node: TrieNode | None = None  # up to which the counters have counted

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        next_op = self.node.next_op
        if func is next_op.step:
            # Most ops have no keyword arguments, and a call with an empty dict is slower.
            out = func(*args, **kwargs) if kwargs else func(*args)
            if type(out) is Tensor:
                self.node = next_op
                tap = next_op.tap
                if tap is not None:
                    tap(self.run, out)
            else:
                self.feed_op_leaves(next_op, out, args)
            return out
        if func in self._no_events:
            return func(*args, **kwargs) if kwargs else func(*args)
        return self._look_up(func, args, kwargs or {})

    # On and off.

    def push_mode(self) -> None:
        """Be called for every op of this thread."""
        push_function_mode(self)
        self.on_stack = True

    def pop_mode(self) -> None:
        """Be called no more."""
        pop_function_mode()
        self.on_stack = False

    def suspend(self) -> bool:
        """Be called no more for a while; False where that can't be, because a later mode stands before this one."""
        count = function_mode_count()
        if not count or function_mode_at(count - 1) is not self:
            return False
        pop_function_mode()
        self.on_stack = False
        return True

    def resume(self) -> bool:
        """End a suspension; False if there was none."""
        if self.on_stack:
            return False
        self.push_mode()
        return True

    def toggle(self) -> None:
        """End a suspension, or go back to it."""
        if self.on_stack:
            self.pop_mode()
        else:
            self.push_mode()

    # Passes, modules and sources.

    def begin(self, run: Any, root: TrieNode) -> None:
        """A pass begins at a root of the trie, or a part of one at any node."""
        self.run = run
        self.node = root
        self._counters_node = None

    def enter(self, tracked: TrackedModule, step: Any, *, own_numbering: bool) -> TrieNode | None:
        """Grow the trie by a module that is entered; None while autograd runs a forward pass again."""
        if graph_task_id() != -1:
            return None
        parent = self.node
        node = self.counters().enter(tracked, parent, step, own_numbering=own_numbering)
        self._add_module(node)
        self.follow(parent, node)
        return node

    def leave(self, enter_node: TrieNode) -> TrieNode:
        """Grow the trie by the return of a module."""
        assert enter_node.tracked is not None
        last = self.node
        node = self._add_module(self.counters().leave(enter_node.tracked, last, enter_node))
        if node.has_kept_leaves:
            node.tap = self.listener.tap(node, node.site)
        last.next_return = node
        self.follow(last, node)
        if enter_node.tracked.runs_one_op and self.may_suspend and last.parent is enter_node and last.inside is None:
            # Now it has been seen that there really was one op. From now on its value is taken from the module.
            enter_node.only_op = last
            enter_node.runs_no_ops = True
        return node

    def returned_opaque(self, enter_node: TrieNode, out: Any) -> None:
        """A module returned whose inside was not seen."""

    def raised(self, enter_node: TrieNode) -> None:
        """An exception left a module: close its frame, because the user's code may catch it and go on."""
        last, step = self.node, RaisedStep(enter_node.depth - 1)
        node = last.edges.get(step)
        if node is None:
            node = self.counters().raised(last, step)
            last.add_edge(step, node)
            self.follow(last, node)
        self.node = node

    def source(self, step: SourceStep, name: str, func_name: str, value: Tensor) -> None:
        """An input or a buffer is read."""
        parent = self.node
        node = parent.edges.get(step)
        if node is None:
            node = self._add_tapped(self.counters().source(step, name, func_name, parent))
            self.follow(parent, node)
        self.node = node
        if node.tap is not None:
            node.tap(self.run, value)

    def started_thread(self, name: str) -> None:
        """The pass gave work to another thread, by the method of this name."""

    # Feeding taps.

    def returned(self, node: TrieNode, out: Any, args: tuple[Any, ...]) -> None:
        """An op returned."""
        if type(out) is Tensor:
            self.node = node
            if node.tap is not None:
                node.tap(self.run, out)
        else:
            self.feed_op_leaves(node, out, args)

    def feed_op_leaves(self, node: TrieNode, out: Any, args: tuple[Any, ...]) -> None:
        """Feed the leaves of an op's value that is not a plain tensor; one without tensors is no event."""
        if out is None and node.site.layer_type == "setitem":
            out = args[0]  # `x[i] = y` returns nothing; its value is what was written to
        tensors = list(leaves(out))
        if tensors:
            self.node = node
            self.feed(node, tensors)

    def feed_value(self, node: TrieNode, out: Any) -> None:
        """Feed the value of a module that returned."""
        if type(out) is Tensor:
            if node.tap is not None:
                _feed(node.tap, self.run, out)
        else:
            self._tell_unread(node, out, "returned")
            self.feed(node, leaves(out))

    def feed_arguments(self, node: TrieNode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Feed the arguments of a module that is entered."""
        self._tell_unread(node, (args, kwargs), "was given")
        self.feed(node, argument_leaves(args, kwargs))

    def _tell_unread(self, node: TrieNode, value: Any, verb: str) -> None:
        """Warn of objects in a selected value whose tensors can't be read; looked for once at each node."""
        if node.is_searched:
            return
        node.is_searched = True
        for name in dict.fromkeys(unread_classes(value)):
            address = node.site.frames[-1].module_address if node.site.frames else ""
            warnings.warn(
                f"the module {address!r} {verb} a {name}, into which fastrec does not look, so its tensors are not "
                "recorded; pass them in a tuple, a list, a dict, a named tuple or a dataclass, or keep the ops that "
                "compute them with keep_op=",
                FastrecWarning,
                stacklevel=4,
            )

    def feed(self, node: TrieNode, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Feed the taps of the leaves of one value."""
        for index, (path, value) in enumerate(tensors):
            tap = self._leaf_tap(node, path, index) if path else node.tap
            if tap is not None:
                _feed(tap, self.run, value)

    def _leaf_tap(self, node: TrieNode, path: str, index: int) -> Tap[Any] | None:
        if node.has_kept_leaves is None:
            node.has_kept_leaves = self.listener.may_keep(node.site)
        if not node.has_kept_leaves:
            return None
        if node.leaf_taps is None:
            node.leaf_taps = {}
        if path not in node.leaf_taps:
            node.leaf_taps[path] = self.listener.tap(node, _leaf_site(node.site, path, index))
        return node.leaf_taps[path]

    # Ops that are not the ones that came next last time.

    def _look_up(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is self._opening:
            return self._run_opened(func, args, kwargs)
        if func in TORCHS_OWN_OPS and is_called_by_torch(func):
            return func(*args, **kwargs)
        node = self.node.edges.get(func)
        if node is None:
            return self._grow(func, args, kwargs)
        if node.inside is not None:
            return self._open(node, func, args, kwargs)
        # What torch may call for itself at the same place has to come by here each time.
        if func not in TORCHS_OWN_OPS:
            self.node.next_op = node
        out = func(*args, **kwargs)
        self.returned(node, out, args)
        return out

    def _grow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if graph_task_id() != -1:  # autograd is running a part of the forward pass again
            return func(*args, **kwargs)
        parent = self.node
        facts = op_facts(func)
        if facts is None:
            if func in RUN_AUTOGRAD:  # what it runs again (checkpointing) is no event either
                return self.thread.run_unrecorded(func, *args, **kwargs)
            self._no_events.add(func)
            return func(*args, **kwargs)
        counters = self.counters()
        node = counters.op(facts, parent, func)
        if facts.composite and self._may_keep_inside(node, func):
            node.inside = counters.inside(parent, facts)
        self._add_tapped(node)
        out = self._look_up(func, args, kwargs)
        if self.node is node:  # its value has tensors, so that it is an event
            self.follow(parent, node)
        return out

    def _may_keep_inside(self, node: TrieNode, func: Any) -> bool:
        prefix = node.site.name
        return any(
            self.listener.may_keep(Site(f"{prefix}/{layer_type}", "op", layer_type, layer_type, node.site.frames))
            for layer_type in inner_layer_types(func)
        )

    def _open(self, node: TrieNode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a composite with its inside in view."""
        outer, inside, parents = self.node, node.inside, self.run.parents
        assert inside is not None
        self.follow(outer, inside)
        self.node = inside
        try:
            out = self._run_under(func, args, kwargs) if function_mode_count() else self._run_opened(func, args, kwargs)
        finally:
            if self._counters is not None and self._counters_node is self.node:
                self._counters.close_to(outer.depth)
                self._counters_node = outer
            self.node = outer
            self.run.parents = parents
        self.returned(node, out, args)
        return out

    def _run_opened(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._opening = None
        with self:
            return opened(func)(*args, **kwargs)

    def _run_under(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a composite under the other modes of this thread, each of which sees it as one op, as without a recorder.

        While torch calls a mode, that mode and the later ones are off the stack. So this one goes below the others and
        ``func`` is called once more: when it has come through all of them, ``_opening`` says that it is to be opened.
        """
        modes = current_modes()
        self._opening = func
        set_modes([self, *modes])
        try:
            return func(*args, **kwargs)
        finally:
            self._opening = None
            set_modes(modes)

    # Growing the trie.

    def counters(self) -> PassCounters:
        """What has been counted up to the current node."""
        if self._counters is None or self._counters_node is not self.node:
            self._counters = PassCounters.at(self.node)
            self._counters_node = self.node
        return self._counters

    def follow(self, parent: TrieNode, node: TrieNode) -> None:
        """Count a new node if the counters stand at its parent; otherwise it is counted when it is needed."""
        if self._counters is not None and self._counters_node is parent:
            self._counters.advance(node)
            self._counters_node = node

    def _add(self, node: TrieNode) -> TrieNode:
        assert node.parent is not None
        self.new_nodes += 1
        node.parent.add_edge(node.step, node)
        return node

    def _add_tapped(self, node: TrieNode) -> TrieNode:
        node.tap = self.listener.tap(node, node.site)
        return self._add(node)

    def _add_module(self, node: TrieNode) -> TrieNode:
        # Asked at once, unlike for ops, so that modules of which nothing is kept cost one comparison per call.
        node.has_kept_leaves = self.listener.may_keep(node.site)
        return self._add(node)


def _feed(tap: Tap[Any], run: Any, value: Tensor) -> None:
    """Feed a tap so that the class of the value does not see the tap's own operations."""
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
