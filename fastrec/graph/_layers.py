"""Operations as passes of layers, and the names of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import msgspec

from fastrec.graph._arguments import REFERENCES
from fastrec.graph._raw import Op

SOURCES = ("input", "buffer")


class Layer(msgspec.Struct):
    """One layer: the operations that are its passes, by index."""

    layer_type: str
    type_number: int
    total_number: int
    ops: list[int]

    @property
    def short(self) -> str:
        """The label without the total number, as in ``conv2d_3``."""
        return f"{self.layer_type}_{self.type_number}"

    @property
    def label(self) -> str:
        """The label, as in ``conv2d_3_7``; inputs and buffers, which are no operations, have no total number."""
        return f"{self.short}_{self.total_number}" if self.total_number and self.layer_type != "output" else self.short


def named(ops: Sequence[Op], order: Iterable[int], groups: Sequence[int]) -> tuple[list[Layer], dict[int, int]]:
    """The layers in order of their first pass, and the layer of each operation.

    ``groups`` holds a number per operation of ``order``; operations with equal numbers are passes of one layer.
    """
    layers: list[Layer] = []
    by_group: dict[int, int] = {}
    layer_of: dict[int, int] = {}
    numbers: Counter[str] = Counter()
    total = 0
    for index, group in zip(order, groups, strict=True):
        place = by_group.get(group)
        if place is None:
            place = by_group[group] = len(layers)
            op = ops[index]
            layer_type = op.call.layer_type
            numbers[layer_type] += 1
            total += op.kind not in SOURCES
            layers.append(Layer(layer_type, numbers[layer_type], 0 if op.kind in SOURCES else total, []))
        layers[place].ops.append(index)
        layer_of[index] = place
    return layers, layer_of


def sameness(op: Op) -> Hashable:
    """A key that is equal for operations that do the same: function, arguments but tensors, parameters, shape."""
    call = op.call
    if op.kind != "op":
        return (op.kind, op.address)
    parameters = tuple(id(parameter.tensor) for parameter in call.parameters)
    return (call.layer_type, op.path, frozen(call.args), frozen(call.kwargs), parameters, op.shape, op.dtype)


def frozen(value: Any) -> Hashable:
    """A nested argument as something that can be compared and hashed; all tensors are the same."""
    kind = type(value)
    if kind in (int, float, bool, str, type(None)):
        return (kind, value) if kind is not float or value == value else "nan"
    if isinstance(value, REFERENCES):
        return REFERENCES
    if kind in (tuple, list):
        return tuple([frozen(item) for item in value])
    if kind is dict:
        return tuple([(key, frozen(item)) for key, item in value.items()])
    if kind is slice:
        return (slice, frozen(value.start), frozen(value.stop), frozen(value.step))
    try:
        hash(value)
    except TypeError:
        return id(value)
    return (kind, value)
