"""Pictures by Graphviz: PDF, PNG and its own SVG, by its program ``dot``.

    content = rendered(drawing, "pdf", seconds=60)

Graphs with many edges over many ranks keep ``dot`` busy for minutes (DenseNet-201: 84 s). They take two steps: ``dot``
places the nodes without these edges, then ``neato -n2`` draws them as straight lines where the nodes are (0.8 s).
"""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from time import monotonic

from fastrec._errors import DrawingError
from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.dot import dot_text, edge_line
from fastrec.graph.draw.view import DrawingView, ViewEdge, view_of

MAX_SPAN = 10
"""Ranks that an edge may span before it is a far one."""

FAR_PER_NODE = 3
"""Ranks that all far edges span together, per node, from which on a graph is drawn in two steps."""


def rendered(drawing: Drawing, format: str, *, seconds: float) -> bytes:
    """The picture of a drawing.

    Arguments:
        format: ``"svg"``, ``"pdf"`` or ``"png"``.
        seconds: how long Graphviz may take.

    Raises DrawingError where Graphviz is missing, fails, or takes longer.
    """
    view = view_of(drawing)
    until = monotonic() + seconds
    far = far_edges(view)
    if not far:
        return _run(["dot", f"-T{format}"], dot_text(drawing, view).encode(), until, view)
    dropped = {id(edge) for edge in far}
    near = DrawingView(view.nodes, view.boxes, [edge for edge in view.edges if id(edge) not in dropped])
    placed = _run(["dot", "-Tdot"], dot_text(drawing, near).encode(), until, view).decode()
    return _run(["neato", "-n2", "-Gsplines=line", f"-T{format}"], _with_edges(placed, far).encode(), until, view)


def _with_edges(text: str, edges: Iterable[ViewEdge]) -> str:
    """A laid out graph with more edges, which have no places yet."""
    body = text.rstrip().removesuffix("}")
    return "\n".join([body, *(edge_line(edge) for edge in edges), "}"])


def far_edges(view: DrawingView) -> Sequence[ViewEdge]:
    """The edges over many ranks, if they are so many that ``dot`` would not come to an end; else none."""
    ranks = _ranks(view)
    far = [edge for edge in view.edges if ranks[edge.target] - ranks[edge.source] > MAX_SPAN]
    spans = sum(ranks[edge.target] - ranks[edge.source] for edge in far)
    return far if spans > FAR_PER_NODE * len(view.nodes) else ()


def _ranks(view: DrawingView) -> dict[str, int]:
    """How far down each node stands: below all that point to it, and one that nothing points to above its first reader.

    Edges that run back are left aside.
    """
    position = {node.id: place for place, node in enumerate(view.nodes)}
    sources: dict[str, list[str]] = defaultdict(list)
    targets: dict[str, list[str]] = defaultdict(list)
    for edge in view.edges:
        if edge.kind == "value" and position[edge.source] < position[edge.target]:
            sources[edge.target].append(edge.source)
            targets[edge.source].append(edge.target)
    ranks: dict[str, int] = {}
    for name in position:
        ranks[name] = 1 + max((ranks[source] for source in sources[name]), default=-1)
    tops = [name for name in position if not sources[name] and targets[name]]
    return ranks | {name: min(ranks[target] for target in targets[name]) - 1 for name in tops}


def _run(command: list[str], text: bytes, until: float, view: DrawingView) -> bytes:
    program = shutil.which(command[0])
    if program is None:
        raise DrawingError(
            f"this format is drawn by Graphviz, whose program {command[0]!r} is not on the PATH; install it (apt "
            "install graphviz, brew install graphviz, conda install graphviz, or from graphviz.org), or draw with "
            "format='svg', which needs nothing"
        )
    try:
        done = subprocess.run([program, *command[1:]], input=text, capture_output=True, timeout=until - monotonic())
    except subprocess.TimeoutExpired as error:
        raise DrawingError(
            f"Graphviz did not finish in time with {len(view.nodes):,} nodes and {len(view.edges):,} edges; draw less "
            "(vis_nesting_depth=2, fold_repeats=True, module='...', vis_mode='rolled'), give it more seconds=, or draw "
            "with format='svg', which takes seconds"
        ) from error
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise DrawingError(f"Graphviz could not draw this: {reason}")
    return done.stdout
