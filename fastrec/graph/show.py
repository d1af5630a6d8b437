"""An operation in words."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastrec._torch.internals import printoptions


def format_operation(op: Any) -> str:
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
    with printoptions(threshold=50):
        text = str(cut).splitlines()
    more = "..." if cut.numel() < op.activation.numel() else ""
    return [f"    {line}" + (more if number == len(text) else "") for number, line in enumerate(text, 1)]


def _list(items: Any) -> str:
    return ", ".join(item for item in items if item) or "none"


def _address(label: str | None) -> str | None:
    """A module pass without the number of its pass, where that is the first."""
    return label.removesuffix(":1") if label else label


def readable_size(nbytes: int) -> str:
    """Bytes as people read them.

    >>> readable_size(253 * 1024 + 512)
    '253.5 KB'
    """
    size = float(nbytes)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024 or unit == "GB":
            return f"{int(size)} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def format_history(history: Any) -> str:
    """The model, the pass and the list of layers."""
    saved = f"{history.num_tensors_saved} tensors ({readable_size(history.tensor_fsize_saved)}) saved"
    computed = f"{history.num_tensors_total} tensors ({readable_size(history.tensor_fsize_total)}) computed"
    params = f"{history.total_params} params total; {readable_size(history.total_params_fsize)}"
    lines = [
        f"Log of {history.model_name} forward pass:",
        f"    Model structure: {_structure(history)}; {len(history.module_addresses)} total modules.",
        f"    {computed} in forward pass; {saved}.",
        f"    {history.total_param_layers} parameter operations ({params}).",
        f"    Random seed: {history.random_seed_used}",
        f"    Time elapsed: {history.elapsed_time_total:.3f}s",
        "    Module Hierarchy:",
        *_hierarchy(history),
        "    Layers:" if history.num_tensors_saved else "    Layers (no values saved):",
    ]
    graph = history.graph
    for number, index in enumerate(history.numbered):
        count = len(graph.layer(index).ops)
        passes = f" ({graph.pass_numbers[index]}/{count} passes)" if count > 1 else ""
        lines.append(f"        {number}: {graph.label(index)}{passes}")
    return "\n".join(lines)


def _structure(history: Any) -> str:
    loops = history.model_max_recurrent_loops
    parts = [f"recurrent (at most {loops} loops)" if history.model_is_recurrent else "purely feedforward"]
    parts.append("with branching" if history.model_is_branching else "without branching")
    if history.model_has_conditional_branching:
        parts.append("with conditional (if-then) branching")
    return ", ".join(parts)


def _hierarchy(history: Any) -> list[str]:
    several = {address for address, count in history.module_num_passes.items() if count > 1}
    children = history.module_pass_children

    def name(label: str) -> str:
        address = label.rpartition(":")[0]
        return label if address in several else address

    def lines(label: str, depth: int) -> list[str]:
        inner = children[label]
        found = ["    " * depth + name(label) + (":" if inner else "")]
        run: list[str] = []
        for child in inner:
            if children[child]:
                found += _wrapped(run, depth + 1) + lines(child, depth + 1)
                run = []
            else:
                run.append(name(child))
        return found + _wrapped(run, depth + 1)

    return [line for label in history.top_level_module_passes for line in lines(label, 2)]


def _wrapped(names: list[str], depth: int) -> list[str]:
    """Names side by side, eight a line."""
    rows = [names[start : start + 8] for start in range(0, len(names), 8)]
    return ["    " * depth + ", ".join(row) + ("," if number < len(rows) else "") for number, row in enumerate(rows, 1)]
