"""The nodes of a drawing with what is known of each, and the modules around them, as all formats need them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.parts import Box, Node
from fastrec.graph.draw.text import xml_characters

TEXTS = ("type", "site", "shape", "dtype", "params", "args", "line")
"""The facts that are written into attributes, where there are any."""


class Row(NamedTuple):
    """A node, its facts by column, and the modules around it, outermost first."""

    number: int
    node: Node
    facts: dict[str, Any]
    boxes: tuple[Box, ...]

    @property
    def attributes(self) -> dict[str, str]:
        """The facts as texts, without empty ones, and what a recorder does here."""
        found = {name: xml_characters(str(self.facts[name])) for name in TEXTS if self.facts.get(name)}
        found |= {name: str(self.facts[name]) for name in ("bytes", "us") if name in self.facts}
        if self.node.mark is not None:
            found |= {"verdict": self.node.mark.verdict, "kept_bytes": str(self.node.mark.nbytes)}
        return found


def rows_of(drawing: Drawing) -> Iterator[Row]:
    """All nodes in order."""
    columns = drawing.facts.columns()
    around: list[tuple[Box, ...]] = []
    for box in drawing.boxes:
        around.append((*(around[box.parent] if box.parent >= 0 else ()), box))
    for index, node in enumerate(drawing.nodes):
        facts = {name: column[index] for name, column in columns.items()}
        yield Row(index, node, facts, around[node.box] if node.box >= 0 else ())
