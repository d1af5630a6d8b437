"""Where a pass differs from those before it, for messages."""

from __future__ import annotations

from fastrec.engines._static_plan import Step, path_to
from fastrec.engines._trie import Node


def name_of(step: Step) -> str:
    """The module call that a step is."""
    assert step.entered.known is not None
    return step.entered.known.name


def _site(node: Node) -> str:
    known = node.known
    if known is None:
        return node.site.name
    return known.name if node.site.kind == "module_exit" else f"{known.address}:in"


def start_of(node: Node) -> Node:
    """The root of the trie that a node is in."""
    while node.parent is not None:
        node = node.parent
    return node


def difference(expected: Node, found: Node) -> str:
    """The first event in which two passes differ."""
    was, now = path_to(expected), path_to(found)
    for one, other in zip(was, now, strict=False):
        if one is not other:
            return f"{_site(other)!r} came where {_site(one)!r} was expected"
    if len(now) > len(was):
        return f"{_site(now[len(was)])!r} came after the last event that was expected"
    return f"{_site(was[len(now)])!r} did not come"
