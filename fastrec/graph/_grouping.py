"""Which operations are passes of one layer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from fastrec.graph._layers import sameness
from fastrec.graph._raw import Op


def groups_of(ops: Sequence[Op], order: Sequence[int], children: Mapping[int, Sequence[int]]) -> list[int]:
    """A number per operation, equal for passes of one layer."""
    known: dict[Hashable, int] = {}
    groups = []
    for position, index in enumerate(order):
        op = ops[index]
        key: Hashable = position
        if op.call.parameters:
            key = sameness(op)
        groups.append(known.setdefault(key, position))
    return groups
