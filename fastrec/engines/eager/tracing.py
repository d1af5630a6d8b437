"""The function mode that also follows where values come from."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor

from fastrec._torch.internals import graph_task_id
from fastrec._torch.modes import unseen_by_dynamo
from fastrec._torch.trees import argument_leaves, leaves
from fastrec.engines._protocol import Listener, OpRunner
from fastrec.engines.eager.mode import RUN_AUTOGRAD, OpMode, ThreadState
from fastrec.engines.eager.modules import TrackedModule
from fastrec.engines.eager.trie import NO_NODE, PassCounters, SourceStep, TrieNode
from fastrec.ops.facts import OpFacts, op_facts


@unseen_by_dynamo
class TracingMode(OpMode):
    """A mode that also tells which buffers an op reads, and from which events its inputs came."""

    def __init__(self, listener: Listener, thread: ThreadState, *, parents: bool) -> None:
        super().__init__(listener, thread, may_rest=False)
        self._parents = parents
        self._labels: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._buffers: dict[int, tuple[Tensor, str]] = {}

    def begin(self, run: Any, root: TrieNode) -> None:
        super().begin(run, root)
        self._labels.clear()

    def watch_buffers(self, buffers: dict[int, tuple[Tensor, str]]) -> None:
        """Which tensors are buffers now, with their addresses."""
        self._buffers = buffers

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is self._opening or func in self._skipped or op_facts(func) is None or graph_task_id() != -1:
            return super().__torch_function__(func, types, args, kwargs)
        read = [value for _, value in leaves((args, kwargs or {}))]
        for value in read:
            held = self._buffers.get(id(value))
            if held is not None:
                address = held[1]
                self.source(SourceStep("buffer", address), f"{address}:buffer", address.rpartition(".")[2], value)
        parents = self.labels(read)
        before = self.node
        self.run.parents = parents
        out = super().__torch_function__(func, types, args, kwargs)
        if self._parents and self.node is not before:
            self.produced(self.node, out if out is not None else args[:1])
        return out

    def source(self, step: SourceStep, name: str, func_name: str, value: Tensor) -> None:
        self.run.parents = ()
        super().source(step, name, func_name, value)
        if self._parents:
            self.produced(self.node, value)

    def feed_value(self, node: TrieNode, out: Any) -> None:
        self.run.parents = self.labels(value for _, value in leaves(out))
        super().feed_value(node, out)

    def feed_arguments(self, node: TrieNode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.run.parents = self.labels(value for _, value in argument_leaves(args, kwargs))
        super().feed_arguments(node, args, kwargs)

    def labels(self, read: Iterable[Tensor]) -> tuple[str, ...] | None:
        """The labels of the events that these values come from."""
        if not self._parents:
            return None
        found = []
        for value in read:
            held = self._labels.get(id(value))
            if held is not None and held[0]() is value and held[1] not in found:
                found.append(held[1])
        return tuple(found)

    def returned_hidden(self, entered: TrieNode, out: Any) -> None:
        assert entered.known is not None
        self._remember(entered.known.name, f":{entered.number}", out)

    def produced(self, node: TrieNode, out: Any) -> None:
        """Remember which event a value came from."""
        self._remember(node.label, "", out)

    def _remember(self, name: str, ending: str, out: Any) -> None:
        if self._parents:
            for path, value in leaves(out):
                self._labels[id(value)] = (weakref.ref(value), f"{name}{path}{ending}")


@unseen_by_dynamo
class PerformingMode(OpMode):
    """Names each call, and hands it to the listener.

    Each pass is its own: only open modules and composites have nodes, which form a chain and no trie, and the tally is
    never worked out again.
    """

    def __init__(self, listener: OpRunner, thread: ThreadState) -> None:
        super().__init__(listener, thread, may_rest=False)
        self._performer = listener
        self._counted = PassCounters("")

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is self._opening:
            return self._run_opened(func, args, kwargs)
        if graph_task_id() != -1:  # autograd runs a part of the forward pass again
            return self.thread.mute(func, args, kwargs)
        if func in self._skipped:
            return self._performer.glance(func, args, kwargs)
        facts = op_facts(func)
        if facts is None:
            if func in RUN_AUTOGRAD:
                return self.thread.mute(func, args, kwargs)
            self._skipped.add(func)
            return self._performer.glance(func, args, kwargs)
        if facts.composite:
            return self._compose(facts, func, args, kwargs)
        tally = self._counted
        label, site = tally.upcoming(facts)
        out = self._performer.perform(facts, label, site, func, args, kwargs)
        if type(out) is Tensor or _is_event(facts, out):
            tally.count(facts)
        return out

    def _compose(self, facts: OpFacts, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a Python function that is made of ops."""
        before = self.node
        node = self._counted.op(facts, before, func)
        node.opens = self._counted.inside(before, facts)
        node.spread = node.opens.spread = True
        inside = partial(self._open, node, func, args, kwargs)
        out = self._performer.compose(node, func, args, kwargs, inside)
        if self.node is node:
            self.follow(before, node)
        return out

    def begin(self, run: Any, root: TrieNode) -> None:
        super().begin(run, TrieNode(root.site, None, None, None))
        self.node.spread = True
        self._tally = self._counted = PassCounters(root.site.name)
        self._tally_at = self.node

    def tally(self) -> PassCounters:
        return self._counted

    def follow(self, before: TrieNode, node: TrieNode) -> None:
        self._counted.advance(node)
        self._tally_at = node

    def enter(self, known: TrackedModule, step: Any, *, sealed: bool) -> TrieNode | None:
        if graph_task_id() != -1:
            return None
        self._tally_at = node = self._counted.enter(known, self.node, sealed)
        node.spread = True
        self._counted.entered(node)
        return node

    def leave(self, entered: TrieNode) -> TrieNode:
        self._counted.left()
        return self._outside(entered)

    def _outside(self, entered: TrieNode) -> TrieNode:
        """Back to where a module was entered from."""
        assert entered.parent is not None
        self._tally_at = node = entered.parent
        node.entered = NO_NODE  # the next call of it is another one
        return node

    def feed_arguments(self, node: TrieNode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._performer.enter(node, args, kwargs)

    def feed_value(self, node: TrieNode, out: Any) -> None:
        self._performer.leave(node, out)

    def returned_hidden(self, entered: TrieNode, out: Any) -> None:
        assert entered.known is not None
        self._performer.hidden(entered, entered.known.module, out)

    def raised(self, entered: TrieNode) -> None:
        self._counted.close_to(entered.depth - 1)
        self.node = self._outside(entered)
        self._performer.raised(entered)


def _is_event(facts: OpFacts, out: Any) -> bool:
    # What was written to is the value of `x[i] = y`, which returns nothing.
    return (out is None and facts.layer_type == "setitem") or next(leaves(out), None) is not None
