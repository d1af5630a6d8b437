"""The profile of a pass as a trace for Perfetto and ``chrome://tracing``: modules on one track, functions on another.

The times are those that the functions of torch took, laid end to end in the order in which they ran: what Python did
between them, and fastrec itself, is not in them, and the trace says so in its ``otherData``.
"""

from __future__ import annotations

import json
from typing import Any

from fastrec._errors import OptionError
from fastrec.graph.draw.description import Drawing
from fastrec.graph.viewers.rows import rows_of

MODULES, FUNCTIONS = 1, 2  # the tracks
NOTE = "The times are those of torch's functions alone, laid end to end in the order in which they ran."


def chrome_trace(drawing: Drawing) -> bytes:
    """The content of a JSON file in the trace event format.

    Raises OptionError for a rolled drawing, in which nothing has one time, and for one without times.
    """
    if drawing.options.vis_mode == "rolled":
        raise OptionError("vis_mode='rolled': a trace shows each call at its time; leave it out")
    rows = list(rows_of(drawing))
    if rows and "us" not in rows[0].facts:
        raise OptionError("a dry run takes no times; export a history")
    spans: dict[int, tuple[float, float]] = {}
    events: list[dict[str, Any]] = []
    now = 0.0
    for row in rows:
        start, now = now, now + float(row.facts["us"])
        for box in row.boxes:
            first, _ = spans.get(id(box), (start, now))
            spans[id(box)] = first, now
        if row.node.kind not in ("input", "output", "buffer"):
            events.append(_event(row.node.id, str(row.facts["type"]), FUNCTIONS, start, now, row.attributes))
    # An outer module stands before those inside of it, which viewers need where both begin at the same time.
    for box in drawing.boxes:
        if id(box) in spans:
            arguments = {"address": box.address, "class": box.module_type}
            events.append(_event(box.id, box.module_type, MODULES, *spans[id(box)], arguments))
    names = [_name("process_name", 0, drawing.title), _name("thread_name", MODULES, "modules")]
    names.append(_name("thread_name", FUNCTIONS, "functions"))
    about = {**drawing.facts.about(), "note": NOTE}
    trace = {"traceEvents": names + events, "displayTimeUnit": "ms", "otherData": about}
    return json.dumps(trace, separators=(",", ":")).encode()


def _event(name: str, category: str, track: int, start: float, end: float, arguments: dict[str, str]) -> dict[str, Any]:
    times = {"ts": round(start, 3), "dur": round(end - start, 3)}
    return {"name": name, "cat": category, "ph": "X", "pid": 1, "tid": track, **times, "args": arguments}


def _name(kind: str, track: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": 1, "tid": track, "args": {"name": name}}
