"""A text of DOT as Graphviz itself reads it."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from html import unescape
from typing import Any

from tests.helpers.programs import program


@dataclass
class DotGraph:
    """Nodes and clusters by name, with their attributes; edges as (tail, head, attributes)."""

    caption: str
    graph: dict[str, Any]
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    clusters: dict[str, dict[str, Any]] = field(default_factory=dict)
    edges: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def edge(self, tail: str, head: str) -> dict[str, Any]:
        """The attributes of the only edge between two nodes."""
        ((_, _, attributes),) = [edge for edge in self.edges if edge[:2] == (tail, head)]
        return attributes

    def text(self, name: str) -> list[str]:
        """The lines of text on a node or a cluster."""
        found = self.nodes.get(name) or self.clusters[name]
        return lines(found["label"])


def lines(label: str) -> list[str]:
    return [unescape(re.sub("<[^>]*>", "", line)) for line in re.split(r"<BR[^>]*/>", label) if line]


def label(edge: dict[str, Any], where: str = "label") -> str:
    """What is written on an edge, or at one end of it."""
    return str(edge.get(where, "")).replace("&#160;", " ").replace("\u00a0", " ").strip()


def read_dot(text: str) -> DotGraph:
    done = subprocess.run([program("dot"), "-Tdot_json"], input=text, capture_output=True, text=True, check=True)
    raw = json.loads(done.stdout, strict=False)  # Graphviz leaves control characters as they are
    found = DotGraph(raw.get("label", ""), raw)
    names = {}
    for thing in raw.get("objects", []):
        names[thing["_gvid"]] = thing["name"]
        is_cluster = thing["name"].startswith("cluster ")
        if is_cluster:
            found.clusters[thing["name"].removeprefix("cluster ")] = thing
        else:
            found.nodes[thing["name"]] = thing
    for cluster in found.clusters.values():
        cluster["inside"] = {names[number] for number in cluster.get("nodes", [])}
    found.edges = [(names[edge["tail"]], names[edge["head"]], edge) for edge in raw.get("edges", [])]
    return found
