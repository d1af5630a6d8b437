"""Random diagrams: nested boxes, edges of all spans between them, marks, loops, and edges that point back."""

from __future__ import annotations

from random import Random

from fastrec.graph.draw.layout import Diagram, DiagramBox, DiagramEdge, DiagramNode


def random_diagram(seed: int, *, most: int = 40) -> Diagram:
    """The same diagram for the same seed."""
    random = Random(seed)
    boxes, nodes, edges = [DiagramBox()], [], dict[tuple[int, int], DiagramEdge]()
    around = [0]
    density, reach = random.choice([0.05, 0.2, 0.5]), random.choice([3, 8, most])
    for node in range(random.randint(1, most)):
        while len(around) > 1 and random.random() < 0.3:
            around.pop()
        while len(around) < 6 and random.random() < 0.35:
            boxes.append(DiagramBox(around[-1], (2 * random.randint(10, 60), random.choice([24, 37])), node))
            around.append(len(boxes) - 1)
        nodes.append(DiagramNode(2 * random.randint(20, 100), 2 * random.randint(10, 30), around[-1]))
        for source in range(max(0, node - reach), node):
            if random.random() < density or source == node - 1:
                edges[source, node] = DiagramEdge(source, node, random.choice([0, 0, 24, 40]))
        if random.random() < 0.05:
            edges[node, node] = DiagramEdge(node, node, 24)
        if node > 2 and random.random() < 0.08:
            back = random.randrange(node)
            edges[node, back] = DiagramEdge(node, back, 24, 40, 1)
    return Diagram(nodes, boxes, list(edges.values()))
