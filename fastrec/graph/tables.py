"""A history as tables and as a networkx graph."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import torch

from fastrec._errors import OptionError
from fastrec._optional import require
from fastrec.graph.raw import CapturedCall, Overwritten, Ref, flat

if TYPE_CHECKING:
    from fastrec.graph.history import ModelHistory


What = Literal["operations", "layers", "modules", "parameters", "buffers"]

Row = dict[str, Any]

OPERATION_COLUMNS = (
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
"""What a row tells of an operation: its attributes that are neither tensors nor functions nor sums over the graph."""

_LAYER_COLUMNS = ("layer_label", "layer_type", "layer_type_num", "layer_total_num", "layer_passes_total") + (
    "parent_layers",
    "child_layers",
)


def rows_of(history: ModelHistory, what: str) -> list[Row]:
    """One row for each operation, layer, module, parameter or buffer; cells are numbers, texts and lists of them."""
    make = _TABLES.get(what)
    if make is None:
        raise OptionError(f"{what!r} is no table of a history; there are {', '.join(map(repr, _TABLES))}")
    return make(history)


def _operations(history: ModelHistory) -> list[Row]:
    own = [name for name in OPERATION_COLUMNS if name != "same_layer_operations"]
    rows = []
    for each in history.operations:
        told = {name: _plain(getattr(each, name)) for name in own}
        told["same_layer_operations"] = history.graph.passes[each.layer_label]  # one list for all passes of a layer
        rows.append({name: told[name] for name in OPERATION_COLUMNS})
    return rows


def _layers(history: ModelHistory) -> list[Row]:
    rows = []
    for layer in history.layers:
        row = {name: _plain(getattr(layer, name)) for name in _LAYER_COLUMNS}
        first = layer.passes[0]
        row["tensor_shape"], row["tensor_dtype"] = _plain(first.tensor_shape), _plain(first.tensor_dtype)
        row["num_params_total"] = first.num_params_total
        row["func_time_elapsed"] = sum(each.func_time_elapsed for each in layer)
        row["tensor_fsize"] = sum(each.tensor_fsize for each in layer)
        rows.append(row)
    return rows


def _modules(history: ModelHistory) -> list[Row]:
    profiles = {row.name: row for row in history.profile("module")}
    return [
        {
            "address": entry.address,
            "module_type": entry.module_type,
            "num_passes": entry.num_passes,
            "passes": [each.label for each in entry.passes],
            "operations": list(entry.operations),
            "parameters": list(entry.parameters),
            "seconds": profiles[entry.address].seconds,
            "memory": profiles[entry.address].memory,
        }
        for entry in history.modules.values()
    ]


def _entries(history: ModelHistory, entries: Mapping[str, msgspec.Struct]) -> list[Row]:
    return [
        {name: _plain(value) for name, value in msgspec.structs.asdict(entry).items()} for entry in entries.values()
    ]


_TABLES: Mapping[str, Callable[[ModelHistory], list[Row]]] = {
    "operations": _operations,
    "layers": _layers,
    "modules": _modules,
    "parameters": lambda history: _entries(history, history.parameters),
    "buffers": lambda history: _entries(history, history.buffers),
}


def _plain(value: Any) -> Any:
    """A cell: no torch types and no tuples."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, list) and value and type(value[0]) is str:
        return value  # labels, of which there may be many
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def frame(rows: Sequence[Row]) -> Any:
    """A pandas frame."""
    return require("pandas", extra="pandas", what="to_pandas()").DataFrame(list(rows))


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line per row; lists are written as JSON."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)


def write_json(rows: Sequence[Row], path: Path) -> None:
    """A list of objects."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1))


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """A parquet file, lists as lists."""
    require("pyarrow.parquet", extra="parquet", what="to_parquet()")
    arrow = require("pyarrow", extra="parquet", what="to_parquet()")
    arrow.parquet.write_table(arrow.Table.from_pylist(list(rows)), path)


def graph_of(history: ModelHistory) -> Any:
    """A networkx graph of the operations, by label, in execution order.

    Nodes have the columns of the table of operations; ``arguments`` of an edge is where the value went in.
    """
    graph = require("networkx", extra="networkx", what="to_networkx()").DiGraph(model_name=history.model_name)
    label = history.graph.label
    for each, row in zip(history.operations, _operations(history), strict=True):
        graph.add_node(label(each.index), **row)
    for index in history.graph.order:
        op = history.graph.ops[index]
        places = argument_places(op.call)
        for parent in op.parents:
            graph.add_edge(label(parent), label(index), arguments=places.get(parent, []))
    return graph


def argument_places(call: CapturedCall) -> dict[int, list[int | str]]:
    """At which positions and keywords of a call the value of each operation went in."""
    found: dict[int, list[int | str]] = {}
    arguments: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    for place, argument in arguments:
        for leaf in flat(argument):
            if isinstance(leaf, Ref | Overwritten) and place not in found.setdefault(leaf.op, []):
                found[leaf.op].append(place)
    return found
