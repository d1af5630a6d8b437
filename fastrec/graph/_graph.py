"""The graph of a pass: what was captured, less its orphans, as layers with names."""

from __future__ import annotations

from functools import cached_property

from fastrec.graph._grouping import groups_of
from fastrec.graph._layers import Layer, named
from fastrec.graph._raw import Capture, ModuleCall, Op
from fastrec.graph._structure import (
    Distances,
    children_of,
    distances_from_input,
    distances_from_output,
    from_input,
    kept,
    to_output,
)


class Graph:
    """The operations of a pass and how they hang together, by index; worked out once.

    ``order`` are the indices of the operations that the graph has.
    """

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.ops: list[Op] = capture.ops
        self.from_input = from_input(self.ops)
        self.to_output = to_output(self.ops)
        self.order = kept(self.ops, capture.truths, self.from_input, self.to_output)

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The operations that read each operation's value."""
        return children_of(self.ops, self.order)

    @cached_property
    def _named(self) -> tuple[list[Layer], dict[int, int]]:
        return named(self.ops, self.order, groups_of(self.ops, self.order))

    @property
    def layers(self) -> list[Layer]:
        """All layers, in order of their first pass."""
        return self._named[0]

    def layer(self, index: int) -> Layer:
        """The layer of an operation."""
        return self._named[0][self._named[1][index]]

    @cached_property
    def pass_numbers(self) -> dict[int, int]:
        """Which pass of its layer each operation is, from 1."""
        return {op: number for layer in self.layers for number, op in enumerate(layer.ops, 1)}

    @cached_property
    def positions(self) -> dict[int, int]:
        """The place of each operation in ``order``."""
        return {index: position for position, index in enumerate(self.order)}

    @cached_property
    def numbers(self) -> dict[int, int]:
        """How many tensor operations had run by each operation, itself included."""
        found, count = {}, 0
        for index in self.order:
            count += self.ops[index].kind == "op"
            found[index] = count
        return found

    @cached_property
    def distances_from_input(self) -> Distances:
        """How far each operation is from the inputs."""
        return distances_from_input(self.ops, self.order)

    @cached_property
    def distances_from_output(self) -> Distances:
        """How far each operation is from the outputs."""
        return distances_from_output(self.ops, self.order, self.children)

    @cached_property
    def module_exits(self) -> dict[int, list[ModuleCall]]:
        """The calls of submodules that each operation's value left, in order."""
        found: dict[int, list[ModuleCall]] = {}
        for call in self.capture.returns:
            for op in call.exited if call.address else ():
                found.setdefault(op, []).append(call)
        return found

    @cached_property
    def module_entries(self) -> dict[int, list[ModuleCall]]:
        """The calls of submodules that each operation's value went into, in order."""
        found: dict[int, list[ModuleCall]] = {}
        for call in self.submodule_calls:
            for op in call.entered:
                found.setdefault(op, []).append(call)
        return found

    @cached_property
    def submodule_calls(self) -> list[ModuleCall]:
        """The calls of all modules but the root."""
        return [call for call in self.capture.module_calls if call.address]

    def label(self, index: int) -> str:
        """The label of an operation, with its pass where the layer has several."""
        return self._labels[index]

    @cached_property
    def _labels(self) -> dict[int, str]:
        found = {}
        for layer in self.layers:
            several = len(layer.ops) > 1
            for number, index in enumerate(layer.ops, 1):
                found[index] = f"{layer.label}:{number}" if several else layer.label
        return found

    @cached_property
    def passes(self) -> dict[str, list[str]]:
        """All passes of each layer, by its label."""
        return {
            layer.label: [f"{layer.label}:{number}" for number in range(1, len(layer.ops) + 1)] for layer in self.layers
        }
