"""A history as tables, and as a networkx graph."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import torch

from fastrec._optional import networkx, pandas
from fastrec.graph.entries import ModuleEntry, Profile
from fastrec.graph.operation import Operation
from fastrec.graph.operations import LayerEntry
from fastrec.graph.raw import CapturedCall, Overwritten, Ref, flat

Table = Literal["operations", "layers", "modules", "parameters", "buffers"]

Row = dict[str, Any]

# The attributes of an operation that are neither tensors nor functions, and don't need a walk through the whole graph.
_OPERATION_COLUMNS = (
    *("layer_label", "layer_label_w_pass", "operation_num", "layer_type", "layer_type_num", "layer_total_num"),
    *("pass_num", "layer_passes_total", "label", "site", "tensor_shape", "tensor_dtype", "tensor_device"),
    *("tensor_fsize", "has_saved_activations", "func_applied_name", "func_time_elapsed", "function_is_inplace"),
    *("gradfunc_name", "is_part_of_iterable_output", "iterable_output_index", "computed_with_params"),
    *("num_param_tensors", "parent_params", "parent_param_shapes", "num_params_total", "parent_params_fsize"),
    *("same_layer_operations", "parent_layers", "child_layers", "sibling_layers", "spouse_layers"),
    *("is_input_layer", "has_input_ancestor", "min_distance_from_input", "max_distance_from_input"),
    *("is_output_layer", "is_output_ancestor", "min_distance_from_output", "max_distance_from_output"),
    *("is_buffer_layer", "buffer_address", "initialized_inside_model", "internally_initialized_parents"),
    *("terminated_inside_model", "is_terminal_bool_layer", "in_cond_branch", "is_computed_inside_submodule"),
    *("containing_module_origin", "containing_module_origin_nested", "modules_entered", "is_submodule_output"),
    *("modules_exited", "is_bottom_level_submodule_output"),
)

_LAYER_COLUMNS = ("layer_label", "layer_type", "layer_type_num", "layer_total_num", "layer_passes_total") + (
    "parent_layers",
    "child_layers",
)


def operation_rows(operations: Iterable[Operation]) -> list[Row]:
    """A row for each operation; cells are numbers, texts and lists of them."""
    return [{name: _operation_cell(op, name) for name in _OPERATION_COLUMNS} for op in operations]


def _operation_cell(op: Operation, name: str) -> Any:
    if name == "same_layer_operations":
        # One list for all passes of a layer: a loop of n steps would need n lists of n labels.
        return op.graph.passes[op.layer_label]
    return _cell(getattr(op, name))


def layer_rows(layers: Iterable[LayerEntry]) -> list[Row]:
    """A row for each layer; times and sizes are sums over its passes."""
    rows = []
    for layer in layers:
        row = {name: _cell(getattr(layer, name)) for name in _LAYER_COLUMNS}
        passes = layer.passes
        row["tensor_shape"], row["tensor_dtype"] = _cell(passes[0].tensor_shape), _cell(passes[0].tensor_dtype)
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


def entry_rows(entries: Iterable[msgspec.Struct]) -> list[Row]:
    """A row for each parameter or buffer."""
    return [{name: _cell(value) for name, value in msgspec.structs.asdict(entry).items()} for entry in entries]


def _cell(value: Any) -> Any:
    """A value without types of torch and tuples."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, list) and value and type(value[0]) is str:
        return value  # a list of labels, which may be long
    if isinstance(value, tuple | list):
        return [_cell(item) for item in value]
    return value


def frame(rows: Sequence[Row]) -> Any:
    """A pandas frame."""
    return pandas().DataFrame(list(rows))


def frame_of_objects(rows: Sequence[Row]) -> Any:
    """A pandas frame to write to a file: cells stay Python objects, so that integers beside None stay integers."""
    return pandas().DataFrame(list(rows), dtype=object)


def with_json_cells(rows: Iterable[Row]) -> list[Row]:
    """Rows whose lists are written as JSON."""
    return [{name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()} for row in rows]


def networkx_graph(model_name: str, operations: Sequence[Operation]) -> Any:
    """A networkx graph of operations, by label, in execution order.

    Nodes have the columns of the table of operations; ``arguments`` of an edge is where the value went in.
    """
    graph = networkx().DiGraph(model_name=model_name)
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
