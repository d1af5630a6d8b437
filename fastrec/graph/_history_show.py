"""A history in words."""

from __future__ import annotations

from typing import Any


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


def shown(history: Any) -> str:
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
