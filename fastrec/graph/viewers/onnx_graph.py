"""A graph as ONNX without weights, for netron: it can be looked at, and not run.

Nodes are torch's functions in a domain of their own, ``torch``, because a log says what was called and not what it
would be in ONNX. Parameters are written by shape, in the attribute ``params``. Edges that a rolled drawing has in a
circle are left out, since ONNX has none.
"""

from __future__ import annotations

from typing import Any

from fastrec._optional import require
from fastrec.graph.draw.description import Drawing
from fastrec.graph.viewers.rows import Row, rows_of

IR_VERSION = 10  # what netron and onnx read for years to come; newer ones add nothing that is used here
OPSET = 21


def onnx_graph(drawing: Drawing) -> bytes:
    """The content of an ONNX file. Raises MissingExtraError without the package onnx."""
    onnx = require("onnx", extra="onnx", what="an ONNX file")
    helper = onnx.helper
    types = _types(onnx)
    sources: dict[int, list[int]] = {}
    for edge in drawing.edges:
        if edge.kind == "value" and edge.source < edge.target:
            sources.setdefault(edge.target, []).append(edge.source)
    rows = list(rows_of(drawing))
    values = {row.number: _value(helper, row, types) for row in rows}
    nodes = [
        _node(helper, row, [rows[i].node.id for i in sources.get(row.number, ())]) for row in rows if _is_node(row)
    ]
    graph = helper.make_graph(
        nodes,
        drawing.title,
        [values[row.number] for row in rows if row.node.kind in ("input", "buffer")],
        [values[row.number] for row in rows if row.node.kind == "output"],
        value_info=[values[row.number] for row in rows if _is_node(row) and row.node.kind != "output"],
        doc_string=", ".join(drawing.caption),
    )
    opsets = [helper.make_opsetid("torch", 1), helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, producer_name="fastrec", ir_version=IR_VERSION, opset_imports=opsets)
    content: bytes = model.SerializeToString()
    return content


def _is_node(row: Row) -> bool:
    return row.node.kind not in ("input", "buffer")


def _node(helper: Any, row: Row, inputs: list[str]) -> Any:
    """A node that computes the value of its name; what the model returns is one, too, whose function is Identity."""
    if row.node.kind == "output":
        return helper.make_node("Identity", inputs, [row.node.id], name=f"return {row.node.id}")
    module = {"module": row.boxes[-1].id} if row.boxes else {}
    name = str(row.facts.get("type") or row.node.kind)
    return helper.make_node(name, inputs, [row.node.id], name=row.node.id, domain="torch", **module, **row.attributes)


def _value(helper: Any, row: Row, types: dict[str, int]) -> Any:
    shape = str(row.facts.get("shape", ""))
    if not shape:
        return helper.make_tensor_value_info(row.node.id, types["float32"], None)
    sizes = [] if shape == "scalar" else [int(size) for size in shape.split("x")]
    return helper.make_tensor_value_info(row.node.id, types.get(str(row.facts.get("dtype")), 0), sizes)


def _types(onnx: Any) -> dict[str, int]:
    """The types of ONNX by torch's names."""
    proto = onnx.TensorProto
    names = ("float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
    found = {name: int(getattr(proto, name.upper())) for name in (*names, "complex64", "complex128")}
    return {**found, "float32": int(proto.FLOAT), "float64": int(proto.DOUBLE)}
