"""A function mode that lets its listener run each op: whoever builds a graph needs what goes into it, not only out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from fastrec._contracts import Performer
from fastrec._ops import OpFacts
from fastrec.engines._mode import RUN_AUTOGRAD, OpMode, ThreadState, unseen_by_dynamo
from fastrec.engines._trie import Node

_graph_task: Callable[[], int] = torch._C._current_graph_task_id


@unseen_by_dynamo
class PerformingMode(OpMode):
    """Finds the place of each call, and hands the call to the listener."""

    def __init__(self, listener: Performer, thread: ThreadState) -> None:
        super().__init__(listener, thread, may_rest=False)
        self._performer = listener

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
        before = self.node
        node = before.edges.get(func)
        new = node is None
        if node is None:
            node = self.make(func)
            if node is None:
                if func in RUN_AUTOGRAD:
                    return self.thread.mute(func, args, kwargs)
                self._skipped.add(func)
                return self._performer.glance(func, args, kwargs)
        if node.opens is not None:
            inside = partial(self._open, node, func, args, kwargs)
            out = self._performer.compose(node, func, args, kwargs, inside)
        else:
            out = self._performer.perform(node, func, args, kwargs)
            self.arrive(node, out, args)
        if new and self.node is node:
            self.follow(before, node)
        return out

    def _may_open(self, node: Node, facts: OpFacts, func: Any) -> bool:
        return True

    def feed_arguments(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._performer.enter(node, args, kwargs)

    def feed_value(self, node: Node, out: Any) -> None:
        self._performer.leave(node, out)

    def returned_hidden(self, entered: Node, out: Any) -> None:
        assert entered.known is not None
        self._performer.hidden(entered, entered.known.module, out)

    def raised(self, entered: Node) -> None:
        super().raised(entered)
        self._performer.raised(entered)
