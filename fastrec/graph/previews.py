"""A look at what a recorder would keep, on the graph of the model, before anything is recorded.

    seen = preview(policy, obs, keep_op="tanh", keep_module="features.*")
    seen.draw("kept.svg")
    seen = seen.repredicate(keep_op=op("tanh") & inside("actor"))

It is a dry run, which says what is kept, laid over the graph of the same pass, which says how values flow. So the two
can't say different things, and what a recorder then keeps is what the dry run says. What is kept and has no place in
the picture (a buffer that is not shown, something outside the module that is drawn) is counted below its title.
"""

from __future__ import annotations

from collections import defaultdict
from os import PathLike
from typing import Any, Protocol

from fastrec._errors import RecordKeyError
from fastrec.dryrun.decisions import Verdict
from fastrec.dryrun.drawing import event_mark, mark_of, not_shown
from fastrec.dryrun.dry_run import DryRun
from fastrec.events.context import RecordContext
from fastrec.graph.draw.description import Drawing
from fastrec.graph.draw.marks import marked
from fastrec.graph.draw.page import write_drawing
from fastrec.graph.draw.parts import Mark
from fastrec.graph.draw.picture import SECONDS, Picture, draw
from fastrec.graph.structure import Graph


class GraphOfPass(Protocol):
    """The history of a pass, as far as a preview needs it."""

    graph: Graph

    @property
    def model_name(self) -> str:
        """The class of the model."""

    def drawing(self, **options: Any) -> Drawing:
        """The description of its drawing."""


class Preview:
    """What a recorder would keep of a pass, and the graph of the pass.

    >>> import torch
    >>> from fastrec.graph import preview
    >>> seen = preview(torch.nn.Tanh(), torch.zeros(2), keep_op=True)
    >>> seen.repredicate(keep_module=True).kept
    [':out']

    ``history`` is the graph, ``dry`` the dry run.
    """

    def __init__(self, history: GraphOfPass, dry: DryRun) -> None:
        self.history = history
        self.dry = dry

    @property
    def kept(self) -> list[str]:
        """The sites of which something is kept."""
        return self._sites("kept")

    @property
    def rejected(self) -> list[str]:
        """The sites that could be kept, and are not."""
        return self._sites("rejected")

    @property
    def unreachable(self) -> list[str]:
        """The sites that can't be kept, as the options are: inputs and buffers, and what comes after a halt."""
        return self._sites("unreachable")

    @property
    def failed(self) -> list[str]:
        """The sites at which a predicate raises or a value can't be kept as it asks."""
        return self._sites("failed")

    def _sites(self, verdict: Verdict) -> list[str]:
        pairs = zip(self.dry.contexts, self.dry.verdicts, strict=True)
        return list(dict.fromkeys(ctx.site for ctx, found in pairs if found == verdict))

    @property
    def nbytes(self) -> int:
        """The bytes that are kept of such a pass."""
        return sum(self.dry.sizes)

    def repredicate(self, *, keep_op: Any = None, keep_module: Any = None) -> Preview:
        """Other predicates about the same pass, without running the model; arguments as for Recorder."""
        return Preview(self.history, self.dry.repredicate(keep_op=keep_op, keep_module=keep_module))

    def drawing(self, **options: Any) -> Drawing:
        """The description of the picture that ``draw`` makes; ``options`` are those of DrawingOptions."""
        events = list(zip(self.dry.contexts, self.dry.outcomes, map(self._operation, self.dry.contexts), strict=True))
        positions = self.history.graph.positions
        if any(outcome.verdict == "kept" and op is not None and op not in positions for _, outcome, op in events):
            options = {**options, "show_orphans": True}  # nothing that is kept may be missing
        drawing = self.history.drawing(**options)
        marks = _Marks(drawing, self.history)
        missing = [outcome for ctx, outcome, operation in events if not marks.add(ctx, event_mark(outcome), operation)]
        return marked(drawing, *marks.by_index(), [*self.dry.totals, *not_shown(missing)])

    def _operation(self, ctx: RecordContext) -> int | None:
        """The operation whose value an event is about; None where there is none, as for a parameter."""
        try:
            return self.history.graph.records.index_of(ctx)
        except RecordKeyError:
            return None

    def draw(
        self,
        path: str | PathLike[str] | None = None,
        *,
        format: str | None = None,
        seconds: float = SECONDS,
        overwrite: bool = False,
        **options: Any,
    ) -> Picture:
        """Draw the graph: sky blue is kept, white rejected, pale gray unreachable, vermilion failing.

        >>> import torch
        >>> from fastrec.graph import preview
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
        >>> preview(model, torch.zeros(2, 4), keep_module="1").draw(format="dot").text.count("<BR/>kept: 64 B per pass")
        1

        Arguments are those of show_model_graph. A closed module shows what is kept of all that is in it.
        """
        return draw(lambda: self.drawing(**options), path, format, seconds=seconds, overwrite=overwrite)

    def to_html(self, path: str | PathLike[str], *, overwrite: bool = False, **options: Any) -> None:
        """Write a page of the graph with the same marks; arguments are those of ModelHistory.to_html.

        >>> import tempfile, torch
        >>> from fastrec.graph import preview
        >>> preview(torch.nn.Tanh(), torch.zeros(2), keep_op=True).to_html(tempfile.mkdtemp() + "/kept.html")
        """
        write_drawing(lambda: self.drawing(**options), path, overwrite=overwrite)

    def __repr__(self) -> str:
        return f"<Preview of {self.history.model_name}: {'; '.join(self.dry.totals)}>"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return self.draw()._repr_mimebundle_(**options)


class _Marks:
    """The marks of a drawing, collected from events.

    What is kept of a module's inputs and outputs is marked on its box. Where it has none, because nothing runs inside,
    or because one operation is all that it does, the operation whose value it is carries the mark.
    """

    def __init__(self, drawing: Drawing, history: GraphOfPass) -> None:
        self._drawing = drawing
        self._nodes: dict[int, list[Mark]] = defaultdict(list)
        self._boxes: dict[int, list[Mark]] = defaultdict(list)
        self._node_of: dict[int, int] = {}
        self._output_of: dict[int, int] = {}  # by the operation that it shows
        ops = history.graph.ops
        for index, node in enumerate(drawing.nodes):
            for op in node.ops:
                if node.kind != "output":
                    self._node_of[op] = index
                else:
                    self._output_of[ops[op].parents[0] if ops[op].kind == "output" else op] = index
        self._box_of = {(box.address, box.number): index for index, box in enumerate(drawing.boxes)}

    def add(self, ctx: RecordContext, mark: Mark, operation: int | None) -> bool:
        """Add the mark of an event that is about an operation's value; False where the drawing has no place for it."""
        box = self._box(ctx)
        if box is not None and not self._drawing.boxes[box].is_single:
            self._boxes[box].append(mark)
            return True
        if box is not None:
            node: int | None = self._drawing.boxes[box].nodes[0]
        elif ctx.kind == "module_exit" and operation in self._output_of and self._leaves_drawing(ctx):
            node = self._output_of[operation]
        else:
            node = None if operation is None else self._node_of.get(operation)
        if node is None:
            return False
        self._nodes[node].append(mark)
        return True

    def _box(self, ctx: RecordContext) -> int | None:
        if ctx.kind not in ("module_enter", "module_exit"):
            return None
        box = self._box_of.get((ctx.module_address, ctx.module_pass_index))
        return self._box_of.get((ctx.module_address, 0)) if box is None else box

    def _leaves_drawing(self, ctx: RecordContext) -> bool:
        """Whether what comes out of a module is an output of what is drawn."""
        module = self._drawing.options.module
        return ctx.module_address == (module or "").partition(":")[0]

    def by_index(self) -> tuple[dict[int, Mark], dict[int, Mark]]:
        """The marks of nodes and of boxes."""
        return {i: mark_of(m) for i, m in self._nodes.items()}, {i: mark_of(m) for i, m in self._boxes.items()}
