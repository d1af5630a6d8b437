"""An operation in words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrec.graph._history_show import readable_size


def shown(op: Any) -> str:
    """All that is worth knowing of an operation, one fact per line."""
    total = op.history.graph.numbers[op.history.graph.order[-1]]
    passes = f" (pass {op.pass_num}/{op.layer_passes_total})" if op.layer_passes_total > 1 else ""
    label = op.layer_label if op.layer_passes_total == 1 else op.layer_label_w_pass
    lines = [f"Layer {label}{passes}, operation {op.operation_num}/{total}:"]
    shape, dtype = tuple(op.tensor_shape), op.tensor_dtype
    lines.append(f"Output tensor: shape={shape}, dtype={dtype}, size={readable_size(op.tensor_fsize)}")
    lines += _preview(op)
    if op.computed_with_params:
        shapes = ", ".join(str(tuple(shape)) for shape in op.parent_param_shapes)
        size = readable_size(op.parent_params_fsize)
        lines.append(f"Params: computed from params with shape {shapes}; {op.num_params_total} params total ({size})")
    else:
        lines.append("Params: none")
    lines.append(f"Parent Layers: {_list(op.parent_layers)}")
    lines.append(f"Child Layers: {_list(op.child_layers)}")
    function = f"{op.func_applied_name} (grad_fn={op.gradfunc_name})" if op.func_applied is not None else "none"
    lines.append(f"Function: {function}")
    if op.in_cond_branch:
        lines.append("Part of a condition")
    lines.append(f"Computed inside module: {_address(op.containing_module_origin) or 'none'}")
    lines.append(f"Time elapsed: {op.func_time_elapsed:.3E}s")
    lines.append(f"Output of modules: {_list(map(_address, op.modules_exited))}")
    lines.append(f"Output of bottom-level module: {_address(op.bottom_level_module) or 'none'}")
    lines.append(f"Lookup keys: {_list(map(str, op.lookup_keys))}")
    return "\n    ".join(lines)


def _preview(op: Any) -> list[str]:
    """The first rows and columns of the value."""
    value: Tensor | None = op.activation
    if value is None:
        return [f"    not saved: {op.not_saved_because}" if op.not_saved_because else "    not saved"]
    value = value.detach()
    while value.dim() > 2:
        value = value[0] if value.shape[0] else value.reshape(0)
    cut = value[tuple(slice(0, 5) for _ in value.shape)]
    with torch._tensor_str.printoptions(threshold=50):
        text = str(cut).splitlines()
    more = "..." if cut.numel() < op.activation.numel() else ""
    return [f"    {line}" + (more if number == len(text) else "") for number, line in enumerate(text, 1)]


def _list(items: Any) -> str:
    return ", ".join(item for item in items if item) or "none"


def _address(label: str | None) -> str | None:
    """A module pass without the number of its pass, where that is the first."""
    return label.removesuffix(":1") if label else label
