"""Which operation a fast recording's record is of."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from fastrec._errors import RecordKeyError
from fastrec.graph._graph import Graph


class RecordFinder:
    """Finds operations by what the fast path calls their events: site, label and leaf."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def index_of(self, ctx: Any) -> int:
        """The operation whose value an event is about, orphans included; RecordKeyError where there is none."""
        site, path = ctx.site, ctx.input_output_address or ""
        if ctx.kind in ("input", "buffer"):
            found = self._sources.get(site)
        elif ctx.kind == "op":
            found = self._ops.get((ctx.label.removesuffix(path), site.removesuffix(path), path))
        else:
            found = self._modules.get((ctx.kind, ctx.module_address, ctx.module_pass_index, path))
        if found is None:
            raise RecordKeyError(f"no operation of this history is the {ctx.kind} {ctx.label!r} at {site!r}")
        return found

    @cached_property
    def _sources(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for op in self._graph.ops:
            if op.kind in ("input", "buffer"):
                found.setdefault(op.call.site, op.index)
        return found

    @cached_property
    def _ops(self) -> dict[tuple[str, str, str], int]:
        found = dict(self._graph.capture.composites)
        found.update({(op.call.label, op.call.site, op.path): op.index for op in self._graph.ops if op.kind == "op"})
        return found

    @cached_property
    def _modules(self) -> dict[tuple[str, str, int, str], int]:
        found = {}
        for call in self._graph.capture.module_calls:
            for kind, leaves in (("module_enter", call.entered_at), ("module_exit", call.exited_at)):
                for path, op in leaves.items():
                    found[kind, call.address, call.number, path] = op
        return found
