"""A graph for Model Explorer: modules as layers that open, and all facts of a node in the panel at its side.

The viewer takes ``{"label", "graphs": [{"id", "nodes"}]}`` and refuses other shapes. A layer is a path of names
divided by slashes, so slashes in names of modules are written otherwise.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.parts import Box, Edge
from fastrec.graph.viewers.rows import Row, rows_of

SLASH = "\u2215"  # the division slash, which looks alike


def model_explorer(drawing: Drawing) -> bytes:
    """The content of a JSON file."""
    edges: dict[int, list[Edge]] = defaultdict(list)
    for edge in drawing.edges:
        if edge.kind == "value":
            edges[edge.target].append(edge)
    nodes = [_node(row, edges[row.number]) for row in rows_of(drawing)]
    groups = {_namespace((*_around(drawing, box), box)): {"class": box.module_type} for box in drawing.boxes}
    graph = {"id": drawing.title, "nodes": nodes, "groupNodeAttributes": groups}
    return json.dumps({"label": drawing.title, "graphs": [graph]}, separators=(",", ":")).encode()


def _node(row: Row, edges: list[Edge]) -> dict[str, Any]:
    incoming = [
        {"sourceNodeId": str(edge.source), "sourceNodeOutputId": "0", "targetNodeInputId": str(number)}
        for number, edge in enumerate(edges)
    ]
    names = [
        {"id": str(number), "attrs": [{"key": "argument", "value": ", ".join(edge.head)}]}
        for number, edge in enumerate(edges)
        if edge.head
    ]
    value = [{"key": name, "value": row.attributes[name]} for name in ("shape", "dtype") if name in row.attributes]
    return {
        "id": str(row.number),
        "label": row.node.id,
        "namespace": _namespace(row.boxes),
        "attrs": [{"key": name, "value": text} for name, text in row.attributes.items()],
        "incomingEdges": incoming,
        "inputsMetadata": names,
        "outputsMetadata": [{"id": "0", "attrs": value}],
        "style": {"backgroundColor": row.node.style.fill},
    }


def _namespace(boxes: tuple[Box, ...]) -> str:
    return "/".join(box.id.replace("/", SLASH) for box in boxes)


def _around(drawing: Drawing, box: Box) -> tuple[Box, ...]:
    found: list[Box] = []
    while box.parent >= 0:
        box = drawing.boxes[box.parent]
        found.append(box)
    return tuple(reversed(found))
