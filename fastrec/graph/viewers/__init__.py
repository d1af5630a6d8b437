"""Graphs as files of other viewers, one file per format.

    history.export("model.onnx")                              # netron opens it
    history.export("model.json", "model-explorer")
    history.export("trace.json", "chrome-trace")              # Perfetto, chrome://tracing

Each is made from the description of a drawing, so that they show what pictures and pages show. Whoever opens one with
untrusted names gets them as text.
"""

from fastrec.graph.viewers.export import FORMATS as FORMATS
from fastrec.graph.viewers.export import ViewerFormat as ViewerFormat
from fastrec.graph.viewers.export import export_drawing as export_drawing
