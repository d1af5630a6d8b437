"""A graph as GraphML, which networkx, Gephi, yEd and Cytoscape read: a node for each node of the drawing."""

from __future__ import annotations

from io import BytesIO

from fastrec._optional import require
from fastrec.graph.draw.description import Drawing
from fastrec.graph.viewers.rows import rows_of


def graphml(drawing: Drawing) -> bytes:
    """The content of a GraphML file; the attributes of nodes are their facts, those of edges the marks at their ends.

    Raises MissingExtraError without networkx.
    """
    networkx = require("networkx", extra="networkx", what="GraphML")
    graph = networkx.MultiDiGraph(name=drawing.title)
    for row in rows_of(drawing):
        numbers = {name: row.facts[name] for name in ("bytes", "us") if name in row.facts}
        texts = {name: text for name, text in row.attributes.items() if name not in numbers}
        module = row.boxes[-1].id if row.boxes else ""
        graph.add_node(row.node.id, kind=row.node.kind, module=module, **texts, **numbers)
    for edge in drawing.edges:
        ends = drawing.nodes[edge.source].id, drawing.nodes[edge.target].id
        graph.add_edge(*ends, kind=edge.kind, head=", ".join(edge.head), tail=", ".join(edge.tail), dashed=edge.dashed)
    content = BytesIO()
    networkx.write_graphml_xml(graph, content)  # not lxml's, which another environment may lack
    return content.getvalue()
