"""Which node of a compiled graph holds which value of a reference trace.

    graph:  linear    tanh                 linear_1
    trace:  linear_1  tanh_1  relu_1       linear_2      relu_1 is not in the graph: nobody uses its value

Both tell of the same pass, in the same order, so the graph's nodes are taken one by one, and each is given the first
event that agrees with it, after the one that was given last. They agree if the kind of op, the innermost module, the
shapes, the plain arguments and the tensors that are read do. Events that are passed over are those that the graph does
not hold: nobody uses their value, or they run outside of it.

Which tensors a node reads is known by the ids of the trace: an input of the graph has one where it is known, and so has
what an aligned node gave. That tells apart two ops that look alike, such as the two branches of a network.
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

ADDED = "fastrec_added"
"""In the meta of a node: a recorder has put it there, so it is no op of the model."""


class Alignment:
    """Where the events of a trace, from one on, are in a graph.

    ``ops`` maps the index of an event to its node, ``unmatched`` are nodes without an event, and ``end`` is the index
    after the last event that has a node. ``input_ids`` are the ids of the tensors that the graph is given, where they
    are known, and ``modules`` the tracked modules by the id of the module.
    """

    def __init__(
        self,
        nodes: Sequence[fx.Node],
        input_ids: Sequence[int | None],
        trace: ReferenceTrace,
        start: int,
        modules: Mapping[int, TrackedModule],
    ) -> None:
        self.ops: dict[int, fx.Node] = {}
        self.unmatched: list[fx.Node] = []
        self.end = start
        self._trace = trace
        self._modules = modules
        self._ids: dict[fx.Node, int] = {}
        self._holders: dict[int, list[tuple[int, fx.Node]]] = {}  # by tensor id: from which event on, and which node
        self._iterations: dict[int, dict[int, fx.Node]] = {}  # by the index of an event: the nodes of its items
        placeholders = [node for node in nodes if node.op == "placeholder"]
        for node, tensor_id in zip(placeholders, input_ids, strict=False):
            if tensor_id is not None:
                self._bind(node, tensor_id, start)
        for node in nodes:
            self._align(node)

    # What it found.

    def holder(self, value: TraceValue, index: int) -> fx.Node | None:
        """The node that holds the tensor of a value as it was at an event, None where the graph has none."""
        node = self.ops.get(index)
        if index in self._iterations:
            return _item_of_iteration(self._iterations[index], self._trace.events[index].values.index(value))
        if node is not None and node.target is not operator.setitem:
            return leaf_node(node, value.leaf.site.output_address)
        return self._holder_of(value.tensor_id, index)

    def ids_of(self, nodes: Iterable[Any]) -> list[int | None]:
        """The ids of the tensors that nodes hold, None where they are not known."""
        return [self._ids.get(node) if isinstance(node, fx.Node) else None for node in nodes]

    def last_node(self, index: int) -> fx.Node | None:
        """The node of an event, or of the last op before it; None: the graph has not begun."""
        indices = [i for i in self.ops if i <= index]
        return self.ops[max(indices)] if indices else None

    def modules_of(self, node: fx.Node) -> list[TrackedModule]:
        """The modules that a node runs in, outermost first, as far as they are known."""
        stack = node.meta.get("nn_module_stack") or ()
        return [tracked for key in stack if (tracked := self._module(key)) is not None]

    # How it finds it.

    def _align(self, node: fx.Node) -> None:
        facts = facts_of(node)
        if facts is None or not _tensors_of(node) or self._is_further_item(node):
            return
        events = self._trace.events
        agreeing = (
            i
            for i in range(self.end, len(events))
            if self._agree(node, facts, events[i]) or self._is_item(node, events[i])
        )
        first = next(agreeing, None)
        if first is None:
            self.unmatched.append(node)
            return
        # The caller decides only among events that agree otherwise: dynamo may have another function call an op than
        # the one that does so without it.
        caller = _caller_of(node)
        # Of an iteration it only says that it is one.
        same_caller = (i for i in (first, *agreeing) if events[i].caller in (caller, _ITERATION))
        index = next(same_caller, first)
        self._match(node, index, events[index])

    def _agree(self, node: fx.Node, facts: OpFacts, event: TraceEvent) -> bool:
        site = event.position.site
        return (
            event.is_op
            and facts.layer_type == site.layer_type
            and self._same_module(node, site.module_address)
            and _same_values(node, event)
            and _same_constants(node, event)
            and self._same_reads(node, event) is not None
        )

    def _is_item(self, node: fx.Node, event: TraceEvent) -> bool:
        """Whether a node takes one item of a tensor that the event iterates over.

        ``for x in xs`` is one ``unbind``, which ``Tensor.__iter__`` calls. Dynamo traces ``xs[0]``, ``xs[1]`` and so on
        in its place.
        """
        number = _item_number(node)
        return (
            event.is_op
            and number is not None
            and number < len(event.values)
            and event.caller == _ITERATION
            and self._same_module(node, event.position.site.module_address)
            and _same_tensors(_tensors_of(node), event.values[number : number + 1])
            and self._same_reads(node, event) is not None
        )

    def _is_further_item(self, node: fx.Node) -> bool:
        """Whether a node takes an item of the last iteration over its tensor; if so, it is noted."""
        number = _item_number(node)
        index = next((i for i, items in reversed(self._iterations.items()) if _is_beside(node, items)), None)
        if number is None or index is None or number in self._iterations[index]:
            return False
        self._match_item(node, index, number)
        return True

    def _match_item(self, node: fx.Node, index: int, number: int) -> None:
        self._iterations.setdefault(index, {})[number] = node
        self._bind(node, self._trace.events[index].values[number].tensor_id, index)

    def _same_module(self, node: fx.Node, address: str) -> bool:
        stack = node.meta.get("nn_module_stack")
        tracked = self._module(next(reversed(stack))) if stack else None
        return tracked is None or tracked.address == address

    def _module(self, key: Any) -> TrackedModule | None:
        return self._modules.get(int(str(key).partition("@")[0]))  # "139872@1" for the second call of a module

    def _same_reads(self, node: fx.Node, event: TraceEvent) -> dict[fx.Node, int] | None:
        """The ids that the node's arguments get if it is the event; None if it reads other tensors than the event."""
        arguments = list(_arguments(node))
        known_ids = [self._ids.get(argument) for argument in arguments]
        if any(tensor_id is not None and tensor_id not in event.reads for tensor_id in known_ids):
            return None
        if len(arguments) != len(event.reads):
            return {}
        new_ids: dict[fx.Node, int] = {}
        for argument, known_id, read_id in zip(arguments, known_ids, event.reads, strict=True):
            if known_id is None:
                holder = self._holder_of(read_id, self.end)
                if holder is not None and holder.op != "placeholder" and argument.op != "placeholder":
                    return None
                new_ids[argument] = read_id
        return new_ids

    def _match(self, node: fx.Node, index: int, event: TraceEvent) -> None:
        for argument, tensor_id in (self._same_reads(node, event) or {}).items():
            self._bind(argument, tensor_id, index)
        self.ops[index] = node
        self.end = index + 1
        if self._is_item(node, event):
            self._match_item(node, index, node.args[1])  # type: ignore[arg-type]
            return
        for value in event.values:
            holder = leaf_node(node, value.leaf.site.output_address, make=False)
            if holder is not None and node.target is not operator.setitem:
                self._bind(holder, value.tensor_id, index)

    def _bind(self, node: fx.Node, tensor_id: int, index: int) -> None:
        self._ids[node] = tensor_id
        self._holders.setdefault(tensor_id, []).append((index, node))

    def _holder_of(self, tensor_id: int, index: int) -> fx.Node | None:
        """The node that holds a tensor at an event: an in-place op returns the same tensor by another node."""
        holders = self._holders.get(tensor_id)
        if not holders:
            return None
        return next((node for since, node in reversed(holders) if since <= index), holders[0][1])


# --- Nodes of graphs ------------------------------------------------------------------------------------------------


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
    """What the value of a node looked like when it was traced: fake tensors, without memory."""
    return node.meta.get("example_value") if isinstance(node, fx.Node) else node


def leaf_node(node: fx.Node, path: str, *, make: bool = True) -> fx.Node | None:
    """The node of one tensor in the value of a node; it is made if nothing has asked for that tensor so far."""
    value = example(node)
    if isinstance(value, Tensor):
        return None if path else node
    if not isinstance(value, tuple | list):
        return None
    names = getattr(type(value), "_fields", None)
    for index, item in enumerate(value):
        step = f".{names[index]}" if names else f"[{index}]"
        if path.startswith(step):
            item_node = _item_node(node, index, item, make=make)
            return item_node and leaf_node(item_node, path[len(step) :], make=make)
    return None


def _item_node(node: fx.Node, index: int, item: Any, *, make: bool) -> fx.Node | None:
    for user in node.users:
        if user.target is operator.getitem and user.args == (node, index):
            return user
    if not make:
        return None
    with node.graph.inserting_after(node):
        item_node = node.graph.call_function(operator.getitem, (node, index))
    item_node.meta["example_value"] = item
    return item_node


# A Python function, so its code tells what its callers are known by.
_ITERATION: Caller = (Tensor.__iter__.__code__.co_filename, Tensor.__iter__.__code__.co_name)
"""The caller of an op that splits a tensor in order to iterate over it."""


def _item_number(node: fx.Node) -> int | None:
    """The number of the item that a node takes of a tensor; None if it does something else."""
    number = node.args[1] if node.target is operator.getitem else None
    return number if type(number) is int and number >= 0 else None


def _is_beside(node: fx.Node, items: Mapping[int, fx.Node]) -> bool:
    """Whether a node takes an item of the same tensor, in the same line, as those of an iteration."""
    item = next(iter(items.values()))
    return node.args[:1] == item.args[:1] and node.meta.get("stack_trace") == item.meta.get("stack_trace")


def _item_of_iteration(items: dict[int, fx.Node], number: int) -> fx.Node:
    """The node of an item; it is made if the model does not use that item."""
    if number not in items:
        item = next(iter(items.values()))
        # Before it, because right after it come the copies of what was there at this event.
        with item.graph.inserting_before(item):
            items[number] = item.graph.call_function(operator.getitem, (item.args[0], number))
        items[number].meta["example_value"] = example(item)
        items[number].meta[ADDED] = True
    return items[number]


def _arguments(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes of the tensors that a node is given; one that is given twice comes twice."""
    arguments: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), arguments.append)
    return (argument for argument in arguments if isinstance(example(argument), Tensor))


def _tensors_of(node: fx.Node) -> list[Tensor]:
    """The tensors that a node gives; for a write the one that was written to."""
    value = example(node.args[0] if node.target is operator.setitem else node)
    return [tensor for _, tensor in leaves(value)]


# The frames of a stack trace. Where a graph breaks, dynamo goes on in a function with a name of its own.
_FRAME = re.compile(r'File "([^"]+)", line \d+, in (torch_dynamo_resume_in_)?(\S+?)(?(2)_at_\d+)$', re.MULTILINE)


def _caller_of(node: fx.Node) -> Caller | None:
    """The function in which a node was traced, except for those of dynamo that stand for others."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    return next(((file, name) for file, _, name in reversed(frames) if DYNAMO_FOLDER not in file), None)


# --- Comparing a node with an event ---------------------------------------------------------------------------------


def _same_values(node: fx.Node, event: TraceEvent) -> bool:
    return _same_tensors(_tensors_of(node), event.values)


def _same_tensors(tensors: Sequence[Tensor], values: Sequence[TraceValue]) -> bool:
    return len(tensors) == len(values) and all(
        tensor.dtype == value.dtype and _same_shape(tensor.shape, value.shape)
        for tensor, value in zip(tensors, values, strict=True)
    )


def _same_shape(shape: Sequence[Any], other: tuple[int, ...]) -> bool:
    """Whether shapes agree, as far as the first one, of a graph, is known: a dynamic size is a symbol."""
    return len(shape) == len(other) and all(
        size == other_size for size, other_size in zip(shape, other, strict=True) if isinstance(size, int)
    )


def _same_constants(node: fx.Node, event: TraceEvent) -> bool:
    """Whether the event was given every plain value that the node is given."""
    constants = list(event.constants)
    args = node.args[:1] if node.target is getattr else node.args
    for constant in constants_in((args, dict(node.kwargs))):
        if constant not in constants:
            return False
        constants.remove(constant)
    return True
