"""From the graph of a pass to the description of its drawing.

    drawing = drawing_of(graph, ModelFacts("Net", parameters, ["", "block"]), DrawingOptions(vis_mode="rolled"))

What is drawn is read off the graph of the pass once: operations (or layers, where it is rolled) become nodes, calls of
modules (or modules) boxes, parents edges. How that looks is said in draw/rules.py, what is seen of it in draw/view.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
from torch import Tensor

from fastrec._errors import OptionError, did_you_mean
from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.nest import ModuleRef, Nest, box_name
from fastrec.graph.draw.options import DrawingOptions
from fastrec.graph.draw.parts import Box, Node, NodeKind
from fastrec.graph.draw.rules import module_style, op_style
from fastrec.graph.draw.text import counted, dimensions
from fastrec.graph.drawing_edges import EdgeBuilder, Role
from fastrec.graph.drawing_facts import FactMaker
from fastrec.graph.raw import CapturedOp, FailedCall, ModuleCall, Parameter
from fastrec.graph.show import readable_size
from fastrec.graph.structure import Graph


class ModelFacts(msgspec.Struct, frozen=True):
    """What a drawing tells of the model beside the graph: its name, its parameters, the addresses of its modules."""

    name: str
    parameters: Sequence[Parameter]
    addresses: Sequence[str]


def drawing_of(graph: Graph, model: ModelFacts, options: DrawingOptions) -> Drawing:
    """The description of a pass's drawing."""
    scope = _Scope(graph, model, options.module)
    builder = _NodeBuilder(graph, options, scope)
    nodes = builder.nodes()
    edge_builder = EdgeBuilder(graph, builder.roles, rolled=options.vis_mode == "rolled")
    edges = edge_builder.value_edges() + edge_builder.failure_edges(builder.failed)
    if options.show_backward:
        edges += edge_builder.backward_edges()
    title = model.name
    if scope.call is not None:
        title += f", {options.module}: {scope.call.kind}"
    parameters = model.parameters if scope.call is None else _parameters_in(graph, scope)
    caption = (title, *_caption(graph, scope, parameters))
    return Drawing(
        title, caption, nodes, builder.boxes, edges, options, FactMaker(graph, model.name, parameters, nodes)
    )


class _Scope:
    """What of a pass is drawn: all of it, or what ran in one module."""

    def __init__(self, graph: Graph, model: ModelFacts, module: str | None) -> None:
        calls = [call for call in graph.submodule_calls if module in (call.address, call.label)]
        if module is not None and not calls:
            problem = "did not run in this pass" if module in model.addresses else "is no submodule of the model"
            near = did_you_mean(module, dict.fromkeys(call.address for call in graph.submodule_calls))
            raise OptionError(f"module={module!r} {problem}; {near}")
        self._calls = {id(call) for call in calls}
        self.call = calls[0] if calls else None
        self.outputs = [op for call in calls for op in call.exited]

    def path(self, innermost: ModuleCall | None) -> list[ModuleCall] | None:
        """The calls of modules around what ran in one, outermost first; None where that is not drawn."""
        path: list[ModuleCall] = []
        call = innermost
        while call is not None:
            if id(call) in self._calls:
                return path[::-1]
            if call.address:
                path.append(call)
            call = call.parent
        return None if self._calls else path[::-1]


class _NodePlace(NamedTuple):
    """A node before it is finished: the operations that it stands for, the box that it lies in, and its role."""

    ops: Sequence[CapturedOp]
    box: int
    kind: NodeKind
    role: Role = "inside"


class _NodeBuilder:
    """Makes nodes and boxes; ``roles`` then tells which node stands for an operation, inside and at the ends."""

    def __init__(self, graph: Graph, options: DrawingOptions, scope: _Scope) -> None:
        self._graph = graph
        self._options = options
        self._scope = scope
        self._is_rolled = options.vis_mode == "rolled"
        self._tested = frozenset(graph.conditions.tested)
        self._passes = Counter(call.address for call in graph.submodule_calls)
        self._nest = Nest()
        self._last_calls: dict[int, ModuleCall] = {}  # of each box: its last call tells what comes out
        self.failed: int | None = None  # the node of what ended the pass
        self.roles: dict[Role, dict[int, int]] = {"inside": {}, "from outside": {}, "to outside": {}}

    @property
    def boxes(self) -> list[Box]:
        """The boxes around the nodes."""
        return self._nest.boxes

    def nodes(self) -> list[Node]:
        """All nodes, in order; boxes and roles are filled on the way."""
        places = sorted(self._places(), key=lambda place: (place.role == "to outside", place.ops[0].index))
        for place in places:
            index = self._nest.add(place.kind, place.box)
            self.roles[place.role].update((op.index, index) for op in place.ops)
        failure = self._graph.capture.failure
        path = None if failure is None else self._scope.path(failure.module)
        box = -1 if path is None else self._box(path)
        if path is not None:
            self.failed = self._nest.add("failed", box)
        self._nest.finish()
        self._finish_boxes(places)
        nodes = [self._node(place) for place in places]
        if failure is not None and path is not None:
            nodes.append(self._failed_node(failure, box))
        return nodes

    def _failed_node(self, failure: FailedCall, box: int) -> Node:
        """The node of what ended the pass; modules around it that are closed show it, too."""
        for index in self._nest.around(box):
            self.boxes[index].lines += (f"raised {failure.error}",)
            self.boxes[index].style = op_style("failed", (), shape="box3d")
        module = self.boxes[box] if box >= 0 and self.boxes[box].is_single else None
        name = failure.call.label if failure.call is not None else "raise"
        address = () if module is None else (box_name(module),)
        style = op_style("failed", (), shape="ellipse" if module is None else "box")
        return Node(self._nest.unique(f"{name} failed"), "failed", (name, failure.error, *address), style, box)

    def _places(self) -> Iterator[_NodePlace]:
        inside: set[int] = set()
        for group in self._groups([op for op in self._graph.ops if self._is_shown(op)]):
            paths = [path for op in group if (path := self._scope.path(op.module)) is not None]
            if paths:
                inside.update(op.index for op in group)
                is_orphan = group[0].index not in self._graph.positions
                yield _NodePlace(group, self._box(_common(paths)), "orphan" if is_orphan else group[0].kind)
        if self._scope.call is not None:
            yield from self._ends(inside)

    def _is_shown(self, op: CapturedOp) -> bool:
        if op.index not in self._graph.positions and not self._options.show_orphans:
            return False
        if op.kind == "buffer":
            return self._options.shows_buffer(op.address)
        return self._options.show_checks or op.index not in self._graph.conditions.evaluating

    def _groups(self, ops: Iterable[CapturedOp]) -> list[list[CapturedOp]]:
        """Operations by the node that stands for them: each alone, or rolled by layer."""
        if not self._is_rolled:
            return [[op] for op in ops]
        groups: dict[Hashable, list[CapturedOp]] = {}
        for op in ops:
            is_orphan = op.index not in self._graph.positions
            key = ("orphan", op.index) if is_orphan else id(self._graph.layer(op.index))
            groups.setdefault(key, []).append(op)
        return list(groups.values())

    def _ends(self, inside: set[int]) -> Iterator[_NodePlace]:
        """Of a module that is drawn alone: what it reads from outside, and its values that go there."""
        ops, children = self._graph.ops, self._graph.children
        read = {parent for index in inside for parent in ops[index].parents} - inside
        for group in self._groups([ops[index] for index in sorted(read) if self._is_shown(ops[index])]):
            yield _NodePlace(group, -1, "buffer" if group[0].kind == "buffer" else "input", "from outside")
        given = {index for index in inside if any(child not in inside for child in children.get(index, ()))}
        for group in self._groups([ops[index] for index in sorted(given | inside.intersection(self._scope.outputs))]):
            yield _NodePlace(group, -1, "output", "to outside")

    def _box(self, path: Sequence[ModuleCall]) -> int:
        """The innermost of the boxes for some calls in each other."""
        box = self._nest.box([self._module(call) for call in path])
        for index, call in zip(self._nest.around(box), reversed(path), strict=True):
            self._last_calls[index] = call
        return box

    def _module(self, call: ModuleCall) -> ModuleRef:
        passes = self._passes[call.address]
        if self._is_rolled:
            return ModuleRef(call.address, call.address, call.kind, 0, passes)
        return ModuleRef(id(call), call.address, call.kind, call.number, passes)

    def _node(self, place: _NodePlace) -> Node:
        op, graph = place.ops[0], self._graph
        box = self.boxes[place.box] if place.box >= 0 else None
        is_module = box is not None and box.is_single
        label = self._label(op, place.kind)
        style = op_style(
            place.kind,
            [parameter.tensor.requires_grad for parameter in op.call.parameters],
            is_tested=not self._tested.isdisjoint(op.index for op in place.ops),
            shape="box" if is_module else "ellipse",
            from_input=any(graph.from_input[op.index] for op in place.ops),
        )
        name = self._nest.unique(f"{label} out" if place.role == "to outside" else label)
        lines = tuple(self._lines(place, label, box if is_module else None))
        return Node(name, place.kind, lines, style, place.box, tuple(op.index for op in place.ops), _alike(op))

    def _lines(self, place: _NodePlace, label: str, module: Box | None) -> Iterator[str]:
        """The text of a node: label and passes, shape and size, parameters, the address of its module or buffer."""
        op = place.ops[0]
        yield f"{label} (x{len(place.ops)})" if len(place.ops) > 1 else label
        yield f"{dimensions(op.shape)} ({readable_size(op.nbytes)})"
        if op.call.parameters:
            yield "params: " + ", ".join(dimensions(tuple(p.tensor.shape)) for p in op.call.parameters)
        if module is not None:
            yield f"@{module.address}" if self._is_rolled else box_name(module)
        elif op.kind == "buffer":
            yield f"@{op.address}"
        elif op.address.startswith("."):
            yield op.address.lstrip(".")  # the name of an input or output

    def _label(self, op: CapturedOp, kind: str) -> str:
        if kind == "orphan":
            return f"{op.call.label} (orphan)"
        return self._graph.layer(op.index).label if self._is_rolled else self._graph.label(op.index)

    def _finish_boxes(self, places: Sequence[_NodePlace]) -> None:
        """What stands on each closed box, from what is in it."""
        count, from_input = [0] * len(self.boxes), [False] * len(self.boxes)
        parameters: list[dict[int, Tensor]] = [{} for _ in self.boxes]
        for place in places:
            used = {id(parameter.tensor): parameter.tensor for parameter in place.ops[0].call.parameters}
            reached = any(self._graph.from_input[op.index] for op in place.ops)
            for index in self._nest.around(place.box):
                count[index] += len(place.ops) * (place.kind == "op")
                from_input[index] = from_input[index] or reached
                parameters[index].update(used)
        for index, box in enumerate(self.boxes):
            size = counted(count[index], "operation")
            numbers = sum(tensor.numel() for tensor in parameters[index].values())
            if numbers:
                size += f", {counted(numbers, 'parameter')}"
            box.lines = (*box.title, *self._value_line(self._last_calls[index]), size)
            trainable = {tensor.requires_grad for tensor in parameters[index].values()}
            box.style = module_style(trainable, from_input=from_input[index])

    def _value_line(self, call: ModuleCall) -> Iterator[str]:
        """Shape and size of what a call returned."""
        if call.exited:
            op = self._graph.ops[call.exited[0]]
            more = f" and {len(call.exited) - 1} more" if len(call.exited) > 1 else ""
            yield f"{dimensions(op.shape)} ({readable_size(op.nbytes)}){more}"


def _common(paths: Sequence[Sequence[ModuleCall]]) -> Sequence[ModuleCall]:
    """The modules that all passes of a layer ran in, as calls of the last pass."""
    *others, last = paths
    length = len(last)
    for path in others:
        length = min(length, len(path))
        while length and [call.address for call in path[:length]] != [call.address for call in last[:length]]:
            length -= 1
    return last[:length]


def _alike(op: CapturedOp) -> Hashable:
    """Equal for operations that do the same to values of the same shapes, whatever they are called."""
    parameters = tuple((tuple(p.tensor.shape), p.tensor.requires_grad) for p in op.call.parameters)
    return op.kind, op.call.layer_type, op.path, op.shape, str(op.dtype), parameters


def _parameters_in(graph: Graph, scope: _Scope) -> list[Parameter]:
    """The parameters that operations in a module use."""
    inside = [graph.ops[index] for index in graph.order if scope.path(graph.ops[index].module) is not None]
    return list({id(p.tensor): p for op in inside for p in op.call.parameters}.values())


def _caption(graph: Graph, scope: _Scope, parameters: Sequence[Parameter]) -> Iterator[str]:
    """The size of what is drawn: tensors, and parameters."""
    sizes = [graph.ops[index].nbytes for index in graph.order if scope.path(graph.ops[index].module) is not None]
    yield f"{counted(len(sizes), 'tensor')} ({readable_size(sum(sizes))})"
    for name, is_trainable in (("trainable", True), ("frozen", False)):
        chosen = [p for p in parameters if p.tensor.requires_grad is is_trainable]
        if chosen or is_trainable:
            number = counted(sum(p.tensor.numel() for p in chosen), f"{name} parameter")
            yield f"{number} ({readable_size(sum(p.nbytes for p in chosen))})"
