"""Operations as rows of a table.

    operation_rows(history.operations)                   # what a file can hold: numbers, texts and lists of them
    frame(operation_rows(operations, ALL_COLUMNS))       # with tensors, functions and arguments, as a pandas frame

Operations, layers and whole histories make their tables from these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import torch

from fastrec._optional import require
from fastrec.graph.raw import Overwritten, Ref, filled
from fastrec.graph.structure import Graph
from fastrec.graph.tensor_file import LazyTensor

Row = dict[str, Any]


class OperationAttributes(Protocol):
    """What rows are made of: an operation, whose other attributes are read by name."""

    graph: Graph
    index: int


PLAIN_COLUMNS = (
    *("layer_label", "layer_label_w_pass", "operation_num", "layer_type", "layer_type_num", "layer_total_num"),
    *("pass_num", "layer_passes_total", "label", "site", "tensor_shape", "tensor_dtype", "tensor_device"),
    *("tensor_fsize", "has_saved_activations", "func_applied_name", "func_time_elapsed", "function_is_inplace"),
    *("gradfunc_name", "is_part_of_iterable_output", "iterable_output_index", "computed_with_params"),
    *("num_param_tensors", "parent_params", "parent_param_shapes", "num_params_total", "parent_params_fsize"),
    *("same_layer_operations", "parent_layers", "child_layers", "sibling_layers", "spouse_layers"),
    *("is_input_layer", "has_input_ancestor", "min_distance_from_input", "max_distance_from_input"),
    *("is_output_layer", "is_output_ancestor", "min_distance_from_output", "max_distance_from_output"),
    *("is_buffer_layer", "buffer_address", "initialized_inside_model", "internally_initialized_parents"),
    *("orig_ancestors", "output_descendents", "internally_initialized_ancestors"),
    *("terminated_inside_model", "is_terminal_bool_layer", "in_cond_branch", "is_computed_inside_submodule"),
    *("containing_module_origin", "containing_module_origin_nested", "modules_entered", "is_submodule_output"),
    *("modules_exited", "is_bottom_level_submodule_output"),
)
"""The attributes of an operation that are neither tensors nor functions, in the order of the table."""

OBJECT_COLUMNS = (
    *("lookup_keys", "tensor_contents", "creation_args", "creation_kwargs", "func_applied", "func_rng_states"),
    *("func_position_args_non_tensor", "func_keyword_args_non_tensor"),
)

"""The attributes that are tensors, functions, or whatever the arguments of a call are."""

ALL_COLUMNS = PLAIN_COLUMNS + OBJECT_COLUMNS
"""All attributes, those that a file can't hold included."""


def operation_rows(operations: Iterable[OperationAttributes], columns: Sequence[str] = PLAIN_COLUMNS) -> list[Row]:
    """A row for each operation."""
    shared: dict[Any, list[str]] = {}
    return [{name: _operation_cell(op, name, shared) for name in columns} for op in operations]


def _operation_cell(op: OperationAttributes, name: str, shared: dict[Any, list[str]]) -> Any:
    # One list for all operations that have the same: a loop of n steps would need n lists of n labels.
    if name == "same_layer_operations":
        return op.graph.passes[op.graph.layer(op.index).label]
    if name in _SETS:
        operations = _SETS[name](op.graph)[op.index]
        key = name == "internally_initialized_ancestors", operations
        if key not in shared:
            wanted = (i for i in sorted(operations) if not key[0] or op.graph.ops[i].made_inside)
            shared[key] = [op.graph.label(i) for i in wanted]
        return shared[key]
    if name in OBJECT_COLUMNS:
        return _object_cell(op, name)
    return cell(getattr(op, name))


_SETS: Mapping[str, Callable[[Graph], Sequence[frozenset[int]]]] = {
    "orig_ancestors": lambda graph: graph.origins,
    "internally_initialized_ancestors": lambda graph: graph.origins,
    "output_descendents": lambda graph: graph.reached_outputs,
}


def _object_cell(op: OperationAttributes, name: str) -> Any:
    raw = op.graph.ops[op.index]
    if isinstance(raw.stored_value, LazyTensor):  # a table must not read all values of a file into memory
        if name == "tensor_contents":
            return raw.stored_value
        if name == "creation_args":
            return tuple(filled(item, lambda leaf: _named(op.graph, leaf)) for item in raw.call.args)
        if name == "creation_kwargs":
            return {key: filled(item, lambda leaf: _named(op.graph, leaf)) for key, item in raw.call.kwargs.items()}
    return getattr(op, name)


def _named(graph: Graph, reference: Any) -> Any:
    return graph.label(reference.op) if isinstance(reference, Ref | Overwritten) else reference


def entry_rows(entries: Iterable[msgspec.Struct]) -> list[Row]:
    """A row for each parameter, buffer or pass of a module."""
    return [{name: cell(value) for name, value in msgspec.structs.asdict(entry).items()} for entry in entries]


def cell(value: Any) -> Any:
    """A value without types of torch and tuples."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, list) and value and type(value[0]) is str:
        return value  # a list of labels, which may be long
    if isinstance(value, tuple | list):
        return [cell(item) for item in value]
    return value


def frame(rows: Sequence[Row]) -> Any:
    """A pandas frame."""
    return require("pandas", extra="pandas", what="to_pandas()").DataFrame(list(rows))
