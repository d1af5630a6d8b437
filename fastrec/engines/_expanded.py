"""A composite in a compiled graph, taken apart into the ops that it is made of."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from types import MethodWrapperType
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from fastrec._ops import opened
from fastrec._torch.modes import unseen_by_dynamo
from fastrec._torch.trees import leaves
from fastrec.engines._aligned import example


def expand(node: fx.Node) -> bool:
    """Put the ops that a composite is made of in its place; False: not where sizes are unknown, or it holds others."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), example)
    given = [value for _, value in leaves((args, kwargs))]
    if not given or any(not isinstance(size, int) for value in given for size in value.shape):
        return False
    tracer = _Tracer(node)
    for each in node.all_input_nodes:
        tracer.hold(example(each), each)
    with given[0].fake_mode, tracer:  # type: ignore[attr-defined]
        out = opened(node.target)(*args, **kwargs)
    if tracer.complete and _replace(node, tracer, out):
        return True
    for made in reversed(tracer.made):
        made.graph.erase_node(made)
    return False


@unseen_by_dynamo
class _Tracer(TorchFunctionMode):
    """Writes down the ops that run."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        self.complete = True
        self._node = node
        self.made: list[fx.Node] = []
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Any] = []  # else another tensor could come to have the same id

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if next(leaves(out), None) is None and getattr(func, "__name__", "") != "__setitem__":
            return out
        target, given = func, args
        if isinstance(func, MethodWrapperType):  # a property
            target, given = getattr, (args[0], func.__self__.__name__)  # type: ignore[attr-defined]
        with self._node.graph.inserting_before(self._node):
            made = self._node.graph.call_function(target, self._mapped(given), self._mapped(kwargs))
        self.made.append(made)
        made.meta = {**self._node.meta, "example_value": out}
        self.hold(out, made)
        return out

    def hold(self, value: Any, node: fx.Node) -> None:
        """Remember which node a tensor, or those in a tuple, came from."""
        self._alive.append(value)
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node
        for index, item in enumerate(value if isinstance(value, tuple | list) else ()):
            if isinstance(item, Tensor) and node.target is not operator.getitem:
                with node.graph.inserting_before(self._node):
                    taken = node.graph.call_function(operator.getitem, (node, index))
                self.made.append(taken)
                taken.meta = {**self._node.meta, "example_value": item}
                self._nodes[id(item)] = taken

    def of(self, value: Tensor) -> fx.Node | None:
        """The node of a tensor."""
        return self._nodes.get(id(value))

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            node = self.of(value)
            self.complete &= node is not None
            return node
        if isinstance(value, tuple | list):
            return type(value)([self._mapped(item) for item in value])
        if isinstance(value, dict):
            return {key: self._mapped(item) for key, item in value.items()}
        self.complete &= not isinstance(value, torch.SymInt | torch.SymFloat)
        return value


def _replace(node: fx.Node, tracer: _Tracer, out: Any) -> bool:
    """Let the users of a composite use what its ops computed."""
    users: dict[fx.Node, Any] = {}
    for user in node.users:
        is_item = user.target is operator.getitem and isinstance(out, tuple | list)
        users[user] = out[user.args[1]] if is_item else None
    if isinstance(out, Tensor):
        users = {node: out}
    found = {user: tracer.of(value) if isinstance(value, Tensor) else None for user, value in users.items()}
    if None in found.values():
        return False
    for user, made in found.items():
        assert made is not None
        user.replace_all_uses_with(made)
        if user is not node:
            node.graph.erase_node(user)
    node.graph.erase_node(node)
    return True
