"""Whether two passes ran the same operations."""

from __future__ import annotations

from itertools import zip_longest

from fastrec._errors import GraphDifferenceError
from fastrec.graph._raw import Capture, Op


def check_same_graph(before: Capture, now: Capture, *, remedy: str) -> None:
    """Raise GraphDifferenceError at the first operation that differs in function, parents, parameters or module."""
    for old, new in zip_longest(before.ops, now.ops):
        if old is None or new is None or facts(old) != facts(new):
            raise GraphDifferenceError(
                f"the model ran other operations than before; the first difference is number {_number(old, new)}: "
                f"{told(before, old)} before, {told(now, new)} now; {remedy}"
            )


def facts(op: Op) -> dict[str, object]:
    """What has to be the same; sizes and numbers may change with the inputs."""
    return {
        "function": (op.kind, op.call.layer_type, op.path),
        "address": op.address,
        "parents": op.parents,
        "parameters": tuple(parameter.address for parameter in op.call.parameters),
        "module": op.module.label if op.module is not None else "",
    }


def told(capture: Capture, op: Op | None) -> str:
    """An operation in a message."""
    if op is None:
        return "nothing"
    parents = ", ".join(capture.ops[parent].call.label or capture.ops[parent].kind for parent in op.parents)
    name = op.call.label or f"{op.kind}{op.address}"
    return f"{name} at {op.call.site!r} from ({parents})"


def _number(old: Op | None, new: Op | None) -> int:
    op = old if old is not None else new
    assert op is not None
    return op.index
