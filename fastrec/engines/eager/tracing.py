"""Function modes that also follow where values come from: ``TracingMode``, and one that lets the listener run the ops.

A value is known by the identity of its tensor object, as long as it lives. So the parents of an op are the events that
gave the very tensors that it reads; what was written in place still has the event that made it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor

from fastrec._torch.internals import graph_task_id
from fastrec._torch.modes import unseen_by_dynamo
from fastrec._torch.trees import argument_leaves, leaves
from fastrec._torch.versions import TORCHS_OWN_OPS, is_called_by_torch
from fastrec.engines._protocol import Listener, OpRunner
from fastrec.engines.eager.mode import RUN_AUTOGRAD, OpMode, ThreadState
from fastrec.engines.eager.modules import TrackedModule
from fastrec.engines.eager.trie import NO_NODE, PassCounters, SourceStep, TrieNode
from fastrec.ops.facts import OpFacts, op_facts


@unseen_by_dynamo
class TracingMode(OpMode):
    """A mode that also tells which buffers an op reads, and from which events its inputs came.

    It looks at the arguments of every op, so it is never suspended.
    """

    def __init__(self, listener: Listener[Any], thread: ThreadState, *, parents: bool) -> None:
        super().__init__(listener, thread, may_suspend=False)
        self._follows_parents = parents
        self._labels: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._buffers: dict[int, tuple[Tensor, str]] = {}

    def watch_buffers(self, buffers: dict[int, tuple[Tensor, str]]) -> None:
        """Which tensors are buffers, by their id, with their addresses."""
        self._buffers = buffers

    def begin(self, run: Any, root: TrieNode) -> None:
        super().begin(run, root)
        self._labels.clear()

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is self._opening or func in self._no_events or op_facts(func) is None or graph_task_id() != -1:
            return super().__torch_function__(func, types, args, kwargs)
        inputs = [value for _, value in leaves((args, kwargs or {}))]
        for value in inputs:
            if id(value) in self._buffers:
                _, address = self._buffers[id(value)]
                self.source(SourceStep("buffer", address), f"{address}:buffer", address.rpartition(".")[2], value)
        last = self.node
        self.run.parents = self._labels_of(inputs)
        out = super().__torch_function__(func, types, args, kwargs)
        if self.node is not last:
            self._remember(self.node.label, "", out if out is not None else args[:1])  # `x[i] = y` gives None
        return out

    def source(self, step: SourceStep, name: str, func_name: str, value: Tensor) -> None:
        self.run.parents = ()
        super().source(step, name, func_name, value)
        self._remember(self.node.label, "", value)

    def feed_value(self, node: TrieNode, out: Any) -> None:
        self.run.parents = self._labels_of(value for _, value in leaves(out))
        super().feed_value(node, out)

    def feed_arguments(self, node: TrieNode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.run.parents = self._labels_of(value for _, value in argument_leaves(args, kwargs))
        super().feed_arguments(node, args, kwargs)

    def returned_opaque(self, enter_node: TrieNode, out: Any) -> None:
        assert enter_node.tracked is not None
        self._remember(enter_node.tracked.name, f":{enter_node.number}", out)

    def _labels_of(self, values: Iterable[Tensor]) -> tuple[str, ...] | None:
        """The labels of the events that these values come from."""
        if not self._follows_parents:
            return None
        labels: dict[str, None] = {}
        for value in values:
            reference, label = self._labels.get(id(value), (None, ""))
            if reference is not None and reference() is value:  # and not another object that got the same id
                labels[label] = None
        return tuple(labels)

    def _remember(self, name: str, ending: str, out: Any) -> None:
        """Remember which event the tensors in a value came from."""
        if self._follows_parents:
            for path, value in leaves(out):
                self._labels[id(value)] = (weakref.ref(value), f"{name}{path}{ending}")


@unseen_by_dynamo
class OpRunnerMode(OpMode):
    """Names each call, and lets the listener run it.

    It is for one pass that is looked at in full, of which nothing is found again. So there is no trie: only open
    modules and composites have nodes, which form a chain, and the counters go along.
    """

    def __init__(self, runner: OpRunner[Any], thread: ThreadState) -> None:
        super().__init__(runner, thread, may_suspend=False)
        self._runner = runner
        self._pass_counters = PassCounters("")

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is self._opening:
            return self._run_opened(func, args, kwargs)
        if func in TORCHS_OWN_OPS and is_called_by_torch(func):
            return self.thread.run_unrecorded(func, *args, **kwargs)
        if graph_task_id() != -1:  # autograd is running a part of the forward pass again
            return self.thread.run_unrecorded(func, *args, **kwargs)
        if func in self._no_events:
            return self._runner.on_other_function(func, args, kwargs)
        facts = op_facts(func)
        if facts is None:
            if func in RUN_AUTOGRAD:
                return self.thread.run_unrecorded(func, *args, **kwargs)
            self._no_events.add(func)
            return self._runner.on_other_function(func, args, kwargs)
        if facts.composite:
            return self._run_composite(facts, func, args, kwargs)
        label, site = self._pass_counters.next_names(facts)
        out = self._runner.on_op(facts, label, site, func, args, kwargs)
        if type(out) is Tensor or _is_event(facts, out):
            self._pass_counters.count_op(facts)
        return out

    def _run_composite(self, facts: OpFacts, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a Python function that is made of ops, with these in view."""
        parent = self.node
        node = self._pass_counters.op(facts, parent, func)
        node.inside = self._pass_counters.inside(parent, facts)
        node.has_kept_leaves = node.inside.has_kept_leaves = True
        run_inside = partial(self._open, node, func, args, kwargs)
        out = self._runner.on_composite(node, func, args, kwargs, run_inside)
        if self.node is node:
            self.follow(parent, node)
        return out

    def begin(self, run: Any, root: TrieNode) -> None:
        super().begin(run, TrieNode(root.site, None, None, None))
        self.node.has_kept_leaves = True
        self._counters = self._pass_counters = PassCounters(root.site.name)
        self._counters_node = self.node

    def counters(self) -> PassCounters:
        return self._pass_counters

    def follow(self, parent: TrieNode, node: TrieNode) -> None:
        self._pass_counters.advance(node)
        self._counters_node = node

    def enter(self, tracked: TrackedModule, step: Any, *, own_numbering: bool) -> TrieNode | None:
        if graph_task_id() != -1:
            return None
        node = self._pass_counters.enter(tracked, self.node, step, own_numbering=own_numbering)
        self._counters_node = node
        node.has_kept_leaves = True
        self._pass_counters.count_entry(node)
        return node

    def leave(self, enter_node: TrieNode) -> TrieNode:
        self._pass_counters.count_return()
        return self._back_outside(enter_node)

    def raised(self, enter_node: TrieNode) -> None:
        self._pass_counters.close_to(enter_node.depth - 1)
        self.node = self._back_outside(enter_node)
        self._runner.on_exception(enter_node)

    def _back_outside(self, enter_node: TrieNode) -> TrieNode:
        """Where a module was entered from."""
        assert enter_node.parent is not None
        self._counters_node = node = enter_node.parent
        node.next_module = NO_NODE  # the next call of the same module is another one
        return node

    def feed_arguments(self, node: TrieNode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._runner.on_enter(node, args, kwargs)

    def feed_value(self, node: TrieNode, out: Any) -> None:
        self._runner.on_leave(node, out)

    def returned_opaque(self, enter_node: TrieNode, out: Any) -> None:
        assert enter_node.tracked is not None
        self._runner.on_opaque_module(enter_node, enter_node.tracked.module, out)

    def started_thread(self, name: str) -> None:
        self._runner.on_thread_start(self.node, name)


def _is_event(facts: OpFacts, out: Any) -> bool:
    # `x[i] = y` returns nothing; its value is what was written to.
    return (out is None and facts.layer_type == "setitem") or next(leaves(out), None) is not None
