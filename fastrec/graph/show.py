"""Values, sizes and modules in print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from fastrec._torch.internals import printoptions


def readable_size(nbytes: int) -> str:
    """A size in bytes for human readers.

    >>> readable_size(253 * 1024 + 512)
    '253.5 KB'
    """
    if nbytes < 1024:
        return f"{nbytes} B"
    size = nbytes / 1024
    for unit in ("KB", "MB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GB"


def listed(names: Iterable[str | None]) -> str:
    """Names on one line.

    >>> listed(["linear_1", None]), listed([])
    ('linear_1', 'none')
    """
    return ", ".join(name for name in names if name) or "none"


def format_module(label: str | None) -> str | None:
    """A module pass, without the number of the pass if that is the first.

    >>> format_module("features.3:1"), format_module("features.3:2")
    ('features.3', 'features.3:2')
    """
    return label.removesuffix(":1") if label else label


def format_value(value: Tensor) -> list[str]:
    """The first five rows and columns of a value; of its first matrix if it has more than two axes."""
    matrix = value.detach()
    while matrix.dim() > 2:
        matrix = matrix[0] if matrix.shape[0] else matrix.reshape(0)
    corner = matrix[tuple(slice(0, 5) for _ in matrix.shape)]
    with printoptions(threshold=50):
        lines = str(corner).splitlines()
    return [*lines[:-1], lines[-1] + ("..." if corner.numel() < value.numel() else "")]


def format_hierarchy(
    top: Iterable[str], children: Mapping[str, Sequence[str]], num_passes: Mapping[str, int], depth: int
) -> list[str]:
    """Module passes as a tree, one per line, those without children side by side.

    ``children`` maps each module pass to the passes inside it. Modules that ran once are shown without a pass number.
    """

    def name(label: str) -> str:
        address = label.rpartition(":")[0]
        return label if num_passes[address] > 1 else address

    lines = []
    for label in top:
        inner = children[label]
        lines.append("    " * depth + name(label) + (":" if inner else ""))
        leaves: list[str] = []
        for child in inner:
            if children[child]:
                lines += _rows(leaves, depth + 1)
                lines += format_hierarchy([child], children, num_passes, depth + 1)
                leaves = []
            else:
                leaves.append(name(child))
        lines += _rows(leaves, depth + 1)
    return lines


def _rows(names: list[str], depth: int) -> list[str]:
    """Names side by side, eight a line."""
    rows = [", ".join(names[start : start + 8]) for start in range(0, len(names), 8)]
    return ["    " * depth + row + ("," if number < len(rows) else "") for number, row in enumerate(rows, 1)]
