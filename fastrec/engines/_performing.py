"""A function mode that lets its listener run each op: whoever builds a graph needs what goes into it, not only out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastrec._contracts import Performer
from fastrec._ops import OpFacts, op_facts
from fastrec._torch.modes import unseen_by_dynamo
from fastrec._torch.trees import leaves
from fastrec.engines._mode import RUN_AUTOGRAD, OpMode, ThreadState
from fastrec.engines._modules import Known
from fastrec.engines._trie import NOWHERE, Node, Tally

_graph_task: Callable[[], int] = torch._C._current_graph_task_id


@unseen_by_dynamo
class PerformingMode(OpMode):
    """Names each call, and hands it to the listener.

    Each pass is its own: only open modules and composites have nodes, which form a chain and no trie, and the tally is
    never worked out again.
    """

    def __init__(self, listener: Performer, thread: ThreadState) -> None:
        super().__init__(listener, thread, may_rest=False)
        self._performer = listener
        self._counted = Tally("")

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is self._opening:
            return self._run_opened(func, args, kwargs)
        if _graph_task() != -1:  # autograd runs a part of the forward pass again
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

    def begin(self, run: Any, root: Node) -> None:
        super().begin(run, Node(root.site, None, None, None))
        self.node.spread = True
        self._tally = self._counted = Tally(root.site.name)
        self._tally_at = self.node

    def tally(self) -> Tally:
        return self._counted

    def follow(self, before: Node, node: Node) -> None:
        self._counted.advance(node)
        self._tally_at = node

    def enter(self, known: Known, step: Any, *, sealed: bool) -> Node | None:
        if _graph_task() != -1:
            return None
        self._tally_at = node = self._counted.enter(known, self.node, sealed)
        node.spread = True
        self._counted.entered(node)
        return node

    def leave(self, entered: Node) -> Node:
        self._counted.left()
        return self._outside(entered)

    def _outside(self, entered: Node) -> Node:
        """Back to where a module was entered from."""
        assert entered.parent is not None
        self._tally_at = node = entered.parent
        node.entered = NOWHERE  # the next call of it is another one
        return node

    def feed_arguments(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._performer.enter(node, args, kwargs)

    def feed_value(self, node: Node, out: Any) -> None:
        self._performer.leave(node, out)

    def returned_hidden(self, entered: Node, out: Any) -> None:
        assert entered.known is not None
        self._performer.hidden(entered, entered.known.module, out)

    def raised(self, entered: Node) -> None:
        self._counted.close_to(entered.depth - 1)
        self.node = self._outside(entered)
        self._performer.raised(entered)


def _is_event(facts: OpFacts, out: Any) -> bool:
    # What was written to is the value of `x[i] = y`, which returns nothing.
    return (out is None and facts.layer_type == "setitem") or next(leaves(out), None) is not None
