"""A history as tables, and as a networkx graph."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from fastrec._optional import require
from fastrec.graph.entries import ModuleEntry, Profile
from fastrec.graph.operation import Operation
from fastrec.graph.operations import LayerEntry
from fastrec.graph.raw import CapturedCall, Overwritten, Ref, flat
from fastrec.graph.rows import Row, cell, operation_rows

Table = Literal["operations", "layers", "modules", "parameters", "buffers"]

_LAYER_COLUMNS = ("layer_label", "layer_type", "layer_type_num", "layer_total_num", "layer_passes_total") + (
    "parent_layers",
    "child_layers",
)


def layer_rows(layers: Iterable[LayerEntry]) -> list[Row]:
    """A row for each layer; times and sizes are sums over its passes."""
    rows = []
    for layer in layers:
        row = {name: cell(getattr(layer, name)) for name in _LAYER_COLUMNS}
        passes = layer.passes
        row["tensor_shape"], row["tensor_dtype"] = cell(passes[0].tensor_shape), cell(passes[0].tensor_dtype)
        row["num_params_total"] = passes[0].num_params_total
        row["func_time_elapsed"] = sum(op.func_time_elapsed for op in passes)
        row["tensor_fsize"] = sum(op.tensor_fsize for op in passes)
        rows.append(row)
    return rows


def module_rows(modules: Iterable[ModuleEntry], profile: Profile) -> list[Row]:
    """A row for each module; ``profile`` is that of modules."""
    profile_rows = {row.name: row for row in profile}
    return [
        {
            "address": module.address,
            "module_type": module.module_type,
            "num_passes": module.num_passes,
            "passes": [module_pass.label for module_pass in module.passes],
            "operations": list(module.operations),
            "parameters": list(module.parameters),
            "seconds": profile_rows[module.address].seconds,
            "memory": profile_rows[module.address].memory,
        }
        for module in modules
    ]


def frame_of_objects(rows: Sequence[Row]) -> Any:
    """A pandas frame to write to a file: cells stay Python objects, so that integers beside None stay integers."""
    return require("pandas", extra="pandas", what="a table in a file").DataFrame(list(rows), dtype=object)


def with_json_cells(rows: Iterable[Row]) -> list[Row]:
    """Rows whose lists are written as JSON."""
    return [{name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()} for row in rows]


def networkx_graph(model_name: str, operations: Sequence[Operation]) -> Any:
    """A networkx graph of operations, by label, in execution order.

    Nodes have the columns of the table of operations; ``arguments`` of an edge is where the value went in.
    """
    graph = require("networkx", extra="networkx", what="to_networkx()").DiGraph(model_name=model_name)
    for op, row in zip(operations, operation_rows(operations), strict=True):
        graph.add_node(op.graph.label(op.index), **row)
    for op in operations:
        places = argument_places(op.raw.call)
        for parent in op.raw.parents:
            graph.add_edge(op.graph.label(parent), op.graph.label(op.index), arguments=places.get(parent, []))
    return graph


def argument_places(call: CapturedCall) -> Mapping[int, list[int | str]]:
    """At which positions and keywords of a call the value of each operation went in."""
    places: dict[int, list[int | str]] = {}
    arguments: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    for place, argument in arguments:
        for leaf in flat(argument):
            if isinstance(leaf, Ref | Overwritten) and place not in places.setdefault(leaf.op, []):
                places[leaf.op].append(place)
    return places
