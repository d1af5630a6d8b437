"""Which node of a compiled graph holds which value of a lesson.

Both tell of the same run, in the same order. A node is taken for an op of the lesson if they agree in the kind of op,
the module, the shapes, the plain arguments and the tensors that are read; ops between two that agree are those that
the graph does not hold (nobody uses their value, or they run outside of it).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from fastrec._torch.dynamo import DYNAMO_FOLDER, NUMPY_FUNCTIONS_MODULE
from fastrec._torch.internals import TensorBase
from fastrec._torch.trees import leaves
from fastrec.engines.compiled.reference_run import Caller, ReferenceTrace, TraceEvent, TraceValue, constants_in
from fastrec.engines.eager.modules import TrackedModule
from fastrec.ops.facts import OpFacts, op_facts
from fastrec.ops.table import TENSOR_PROPERTIES

_FRAME = re.compile(r'File "([^"]+)", line \d+, in (torch_dynamo_resume_in_)?(\S+?)(?(2)_at_\d+)$', re.MULTILINE)

ADDED = "fastrec_added"
"""In the meta of a node: a recorder has put it there."""


class Alignment:
    """Where the events of a lesson, from one on, are in a graph.

    ``ops`` maps an event's index to its node; ``end`` is the index after the last of them. ``inputs`` are the tensors
    of the lesson that the graph is given, as far as they are known.
    """

    def __init__(
        self,
        nodes: Sequence[fx.Node],
        inputs: Sequence[int | None],
        lesson: ReferenceTrace,
        start: int,
        known: Mapping[int, TrackedModule],
    ) -> None:
        self.ops: dict[int, fx.Node] = {}
        self.unmatched: list[fx.Node] = []
        self.start = start
        self.end = start
        self._lesson = lesson
        self._known = known
        self._tokens: dict[fx.Node, int] = {}
        self._holders: dict[int, list[tuple[int, fx.Node]]] = {}
        placeholders = [node for node in nodes if node.op == "placeholder"]
        for node, token in zip(placeholders, inputs, strict=False):
            if token is not None:
                self._bind(node, token, start)
        for node in nodes:
            self._find(node)

    def holder(self, value: TraceValue, index: int) -> fx.Node | None:
        """The node that holds the tensor object of a value, None where the graph has none."""
        node = self.ops.get(index)
        if node is not None and node.target is not operator.setitem:
            return leaf_node(node, value.leaf.site.output_address)
        return self._held(value.token, index)

    def tokens(self, nodes: Iterable[Any]) -> list[int | None]:
        """Which tensors of the lesson nodes hold, None where that is not known."""
        return [self._tokens.get(node) if isinstance(node, fx.Node) else None for node in nodes]

    def after(self, index: int) -> fx.Node | None:
        """The node of the last op before an event, or of the event itself; None: the graph has not begun."""
        before = [i for i in self.ops if i <= index]
        return self.ops[max(before)] if before else None

    def modules(self, node: fx.Node) -> list[TrackedModule]:
        """The modules that a node runs in, outermost first, as far as they are known."""
        stack = node.meta.get("nn_module_stack") or ()
        found = (self._known.get(int(str(key).partition("@")[0])) for key in stack)
        return [known for known in found if known is not None]

    def _find(self, node: fx.Node) -> None:
        facts = facts_of(node)
        if facts is None or not _tensors(node):
            return
        events = self._lesson.events
        agree = (i for i in range(self.end, len(events)) if events[i].is_op and self._agree(node, facts, events[i]))
        first = next(agree, None)
        if first is None:
            self.unmatched.append(node)
            return
        caller = _caller(node)
        # A function may be called by another one while the model is compiled, but not without need.
        found = (i for i in (first, *agree) if events[i].caller == caller)
        self._match(node, index := next(found, first), events[index])

    def _agree(self, node: fx.Node, facts: OpFacts, event: TraceEvent) -> bool:
        site = event.place.site
        if facts.layer_type != site.layer_type or not self._same_module(node, site.module_address):
            return False
        if not _same_values(node, event) or not _agree_in_constants(node, event):
            return False
        return self._read_the_same(node, event) is not None

    def _same_module(self, node: fx.Node, address: str) -> bool:
        inside = node.meta.get("nn_module_stack")
        if not inside:
            return True
        known = self._known.get(int(str(next(reversed(inside))).partition("@")[0]))
        return known is None or known.address == address

    def _read_the_same(self, node: fx.Node, event: TraceEvent) -> dict[fx.Node, int] | None:
        """Which nodes have to be which tensors of the lesson, if the node reads what the event reads; else None."""
        nodes = [given for given in _arguments(node)]
        bound = [self._tokens.get(given) for given in nodes]
        if any(token is not None and token not in event.reads for token in bound):
            return None
        if len(nodes) != len(event.reads):
            return {}
        new: dict[fx.Node, int] = {}
        for given, token, read in zip(nodes, bound, event.reads, strict=True):
            if token is None:
                holder = self._held(read, self.end)
                if holder is not None and holder.op != "placeholder" and given.op != "placeholder":
                    return None
                new[given] = read
        return new

    def _match(self, node: fx.Node, index: int, event: TraceEvent) -> None:
        for given, token in (self._read_the_same(node, event) or {}).items():
            self._bind(given, token, index)
        self.ops[index] = node
        self.end = index + 1
        for value in event.values:
            holder = leaf_node(node, value.leaf.site.output_address, make=False)
            if holder is not None and node.target is not operator.setitem:
                self._bind(holder, value.token, index)

    def _bind(self, node: fx.Node, token: int, index: int) -> None:
        self._tokens[node] = token
        self._holders.setdefault(token, []).append((index, node))

    def _held(self, token: int, index: int) -> fx.Node | None:
        """The node that holds a tensor object at an event: an in-place op returns the same object by another node."""
        held = self._holders.get(token)
        if not held:
            return None
        return next((node for since, node in reversed(held) if since <= index), held[0][1])


def _caller(node: fx.Node) -> Caller | None:
    """The function in which a node was traced, but for those that stand for others in dynamo."""
    found = _FRAME.findall(node.meta.get("stack_trace") or "")
    return next(((file, name) for file, _, name in reversed(found) if DYNAMO_FOLDER not in file), None)


def facts_of(node: fx.Node) -> OpFacts | None:
    """What is known of the op that a node calls; None if it is no event."""
    target = node.target
    if ADDED in node.meta:
        return None
    if node.op == "call_method":
        method = getattr(Tensor, str(target), None)
        return op_facts(method) if method is not None else None
    if node.op != "call_function" or not callable(target):
        return None
    if target is getattr:
        name = str(node.args[1])
        return op_facts(vars(TensorBase)[name].__get__) if name in TENSOR_PROPERTIES else None
    if target is operator.getitem and not isinstance(example(node.args[0]), Tensor):
        return None  # takes a tensor out of a tuple
    if type(target).__module__ == NUMPY_FUNCTIONS_MODULE:
        return None  # a function of numpy, which dynamo computes with torch
    return op_facts(target)


def example(node: Any) -> Any:
    """What the value of a node looked like when it was traced."""
    return node.meta.get("example_value") if isinstance(node, fx.Node) else node


def leaf_node(node: fx.Node, path: str, *, make: bool = True) -> fx.Node | None:
    """The node of one tensor in the value of a node; it is made where nothing has asked for it so far."""
    value = example(node)
    if isinstance(value, Tensor):
        return None if path else node
    if not isinstance(value, tuple | list):
        return None
    names = getattr(type(value), "_fields", None)
    for index, item in enumerate(value):
        step = f".{names[index]}" if names else f"[{index}]"
        if path.startswith(step):
            taken = _taken(node, index, item, make=make)
            return taken and leaf_node(taken, path[len(step) :], make=make)
    return None


def _taken(node: fx.Node, index: int, item: Any, *, make: bool) -> fx.Node | None:
    for user in node.users:
        if user.target is operator.getitem and user.args == (node, index):
            return user
    if not make:
        return None
    with node.graph.inserting_after(node):
        taken = node.graph.call_function(operator.getitem, (node, index))
    taken.meta["example_value"] = item
    return taken


def _arguments(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes of the tensors that a node is given, one that is given twice twice."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return (each for each in found if isinstance(example(each), Tensor))


def _same_values(node: fx.Node, event: TraceEvent) -> bool:
    found = _tensors(node)
    if len(found) != len(event.values):
        return False
    return all(
        each.dtype == seen.dtype and _same_shape(each.shape, seen.shape)
        for each, seen in zip(found, event.values, strict=True)
    )


def _tensors(node: fx.Node) -> list[Tensor]:
    """The tensors that a node gives; for a write the one that was written."""
    value = example(node.args[0] if node.target is operator.setitem else node)
    return [each for _, each in leaves(value)]


def _same_shape(shape: Sequence[Any], seen: tuple[int, ...]) -> bool:
    """Whether shapes agree, as far as the one of the graph is known."""
    return len(shape) == len(seen) and all(
        size == other for size, other in zip(shape, seen, strict=True) if isinstance(size, int)
    )


def _agree_in_constants(node: fx.Node, event: TraceEvent) -> bool:
    """Whether the event was given every plain value that the node is given."""
    left = list(event.constants)
    args = node.args[:1] if node.target is getattr else node.args
    for constant in constants_in((args, dict(node.kwargs))):
        if constant not in left:
            return False
        left.remove(constant)
    return True
