"""Boxes in boxes, made as nodes that lie in them are added: what every description of a drawing begins with.

nest = Nest()
nest.add("op", [ModuleRef("encoder", "encoder", "Encoder", 1, 1)])   # the node 0, in the box 0
nest.finish()
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from fastrec.graph.draw.parts import Box, NodeKind


class ModuleRef(NamedTuple):
    """A module around a node: one call of it, the ``number``-th of its ``passes``, or all of them (0).

    Equal keys in the same surrounding box are one box.
    """

    key: Hashable
    address: str
    module_type: str
    number: int
    passes: int


class Nest:
    """The boxes of a drawing; ``box_of`` is the innermost one of each node that was added, -1 for none."""

    def __init__(self) -> None:
        self.boxes: list[Box] = []
        self.box_of: list[int] = []
        self._kinds: list[NodeKind] = []
        self._indices: dict[tuple[int, Hashable], int] = {}
        self._names: set[str] = set()

    def box(self, path: Sequence[ModuleRef]) -> int:
        """The innermost of the boxes for some modules in each other, outermost first; made where there is none."""
        index = -1
        for module in path:
            parent, index = index, self._indices.get((index, module.key), -1)
            if index < 0:
                index = self._indices[parent, module.key] = len(self.boxes)
                own = Box("", module.address, module.module_type, module.number, module.passes, parent, [], [])
                own.id = self.unique(f"@{module.address}" if not module.number else box_name(own))
                self.boxes.append(own)
                if parent >= 0:
                    self.boxes[parent].boxes.append(index)
        return index

    def add(self, kind: NodeKind, box: int) -> int:
        """Put the next node into a box; its index."""
        node = len(self._kinds)
        self._kinds.append(kind)
        self.box_of.append(box)
        if box >= 0:
            self.boxes[box].nodes.append(node)
        return node

    def finish(self) -> None:
        """All nodes were added: find the boxes that hold one operation and nothing else, and name all."""
        for box in self.boxes:
            box.is_single = not box.boxes and [self._kinds[node] for node in box.nodes] in (["op"], ["failed"])
            box.title = (box_name(box), box.module_type)

    def unique(self, name: str) -> str:
        """A name, or where it is taken the name with a number."""
        unique, number = name, 2
        while unique in self._names:
            unique, number = f"{name} #{number}", number + 1
        self._names.add(unique)
        return unique

    def around(self, box: int) -> list[int]:
        """A box and all boxes around it, innermost first."""
        found = []
        while box >= 0:
            found.append(box)
            box = self.boxes[box].parent
        return found


def box_name(box: Box) -> str:
    """A module's address with the number of the pass, or of all passes, where there are several."""
    if box.passes == 1:
        return f"@{box.address}"
    return f"@{box.address}:{box.number}" if box.number else f"@{box.address} (x{box.passes})"
