"""Which operations of a capture are passes of one layer."""

from __future__ import annotations

from collections.abc import Sequence

from fastrec.graph._layers import sameness
from fastrec.graph._raw import Op
from fastrec.graph._recurrence import Node, assign_layers


def groups_of(ops: Sequence[Op], order: Sequence[int]) -> list[int]:
    """A number per operation, equal for passes of one layer."""
    positions = {index: position for position, index in enumerate(order)}
    return [place.layer for place in assign_layers([_node(ops[index], positions) for index in order])]


def _node(op: Op, positions: dict[int, int]) -> Node:
    return Node(
        same=None if op.kind in ("input", "output") else sameness(op),
        parents=tuple([positions[parent] for parent in op.parents]),
        function=f"{op.call.layer_type}{op.path}{op.address if op.kind == 'buffer' else ''}",
        parameters=tuple([id(parameter.tensor) for parameter in op.call.parameters]),
        module=op.module.address if op.module is not None else "",
    )
