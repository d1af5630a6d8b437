"""The function mode that also follows where values come from."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fastrec._contracts import Listener
from fastrec._ops import op_facts
from fastrec._torch.modes import unseen_by_dynamo
from fastrec._torch.trees import argument_leaves, leaves
from fastrec.engines._mode import OpMode, ThreadState
from fastrec.engines._trie import Node, Source

_graph_task: Callable[[], int] = torch._C._current_graph_task_id


@unseen_by_dynamo
class TracingMode(OpMode):
    """A mode that also tells which buffers an op reads, and from which events its inputs came."""

    def __init__(self, listener: Listener, thread: ThreadState, *, parents: bool) -> None:
        super().__init__(listener, thread, may_rest=False)
        self._parents = parents
        self._labels: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._buffers: dict[int, tuple[Tensor, str]] = {}

    def begin(self, run: Any, root: Node) -> None:
        super().begin(run, root)
        self._labels.clear()

    def watch_buffers(self, buffers: dict[int, tuple[Tensor, str]]) -> None:
        """Which tensors are buffers now, with their addresses."""
        self._buffers = buffers

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is self._opening or func in self._skipped or op_facts(func) is None or _graph_task() != -1:
            return super().__torch_function__(func, types, args, kwargs)
        read = [value for _, value in leaves((args, kwargs or {}))]
        for value in read:
            held = self._buffers.get(id(value))
            if held is not None:
                address = held[1]
                self.source(Source("buffer", address), f"{address}:buffer", address.rpartition(".")[2], value)
        parents = self.labels(read)
        before = self.node
        self.run.parents = parents
        out = super().__torch_function__(func, types, args, kwargs)
        if self._parents and self.node is not before:
            self.produced(self.node, out if out is not None else args[:1])
        return out

    def source(self, step: Source, name: str, func_name: str, value: Tensor) -> None:
        self.run.parents = ()
        super().source(step, name, func_name, value)
        if self._parents:
            self.produced(self.node, value)

    def feed_value(self, node: Node, out: Any) -> None:
        self.run.parents = self.labels(value for _, value in leaves(out))
        super().feed_value(node, out)

    def feed_arguments(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
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

    def returned_hidden(self, entered: Node, out: Any) -> None:
        assert entered.known is not None
        self._remember(entered.known.name, f":{entered.number}", out)

    def produced(self, node: Node, out: Any) -> None:
        """Remember which event a value came from."""
        self._remember(node.label, "", out)

    def _remember(self, name: str, ending: str, out: Any) -> None:
        if self._parents:
            for path, value in leaves(out):
                self._labels[id(value)] = (weakref.ref(value), f"{name}{path}{ending}")
