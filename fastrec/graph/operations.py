"""Several operations of a history: a sequence that queries narrow down, and the passes of one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import overload

from torch import Tensor

from fastrec._errors import OptionError, RecordKeyError
from fastrec.graph.layers import Layer
from fastrec.graph.operation import Operation
from fastrec.graph.structure import Graph


class Operations(Sequence[Operation]):
    """Some operations of a history, in execution order; each method gives those that match.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    >>> history = log_forward_pass(model, torch.ones(1, 1, 8, 8))
    >>> history.operations.of_type("*pool*").with_parent("relu").labels
    ['maxpool2d_1_3']
    >>> len(history.between("input_1", "output_1").of_type("conv*"))
    1
    >>> history.operations.slowest(10)[0].layer_type in ("conv2d", "relu", "maxpool2d")
    True

    Made by a history. Patterns are globs, matched against layer types (``"conv*"``) or module addresses.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._operations = tuple(operations)

    def __len__(self) -> int:
        return len(self._operations)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations)

    @overload
    def __getitem__(self, position: int) -> Operation: ...
    @overload
    def __getitem__(self, position: slice) -> Operations: ...
    def __getitem__(self, position: int | slice) -> Operation | Operations:
        item = self._operations[position]
        return Operations(item) if isinstance(item, tuple) else item

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def labels(self) -> list[str]:
        """Their labels."""
        return [op.graph.label(op.index) for op in self]

    def where(self, test: Callable[[Operation], bool]) -> Operations:
        """Those for which a function returns True."""
        return Operations(op for op in self if test(op))

    def of_type(self, *types: str) -> Operations:
        """Those of some layer types."""
        matches = _matcher(types)
        return self.where(lambda op: matches(op.layer_type))

    def inside(self, *addresses: str) -> Operations:
        """Those that ran in some modules, at any depth."""
        matches = _matcher(addresses)
        return self.where(lambda op: any(matches(call.address) for call in op.raw.modules_around))

    def with_parent(self, *types: str) -> Operations:
        """Those that read a value of some layer types."""
        matches = _matcher(types)
        return self.where(lambda op: any(matches(op.graph.layer(i).layer_type) for i in op.raw.parents))

    def with_child(self, *types: str) -> Operations:
        """Those whose value is read by some layer types."""
        matches = _matcher(types)
        return self.where(
            lambda op: any(matches(op.graph.layer(i).layer_type) for i in op.graph.children.get(op.index, ()))
        )

    def with_parameters(self) -> Operations:
        """Those that use parameters."""
        return self.where(lambda op: op.computed_with_params)

    def slowest(self, count: int) -> Operations:
        """Those that took the longest, slowest first."""
        return self._most(count, lambda op: op.func_time_elapsed)

    def largest(self, count: int) -> Operations:
        """Those with the largest values in bytes, largest first."""
        return self._most(count, lambda op: op.tensor_fsize)

    def _most(self, count: int, amount: Callable[[Operation], float]) -> Operations:
        if type(count) is not int or count < 1:
            raise OptionError(f"{count!r} operations: give a whole number from 1 up")
        return Operations(sorted(self, key=lambda op: -amount(op))[:count])

    def __repr__(self) -> str:
        names = ", ".join(self.labels[:8]) + (", ..." if len(self) > 8 else "")
        return f"<{len(self)} operations: {names}>" if self else "<no operations>"


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    if {type(pattern) for pattern in patterns} != {str}:
        raise OptionError(f"patterns {patterns!r}: give one or more strings, such as 'conv*'")
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


class LayerEntry:
    """A layer of a history: operations that are passes of the same layer.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> cell = torch.nn.Linear(4, 4)
    >>> history = log_forward_pass(torch.nn.Sequential(cell, torch.nn.ReLU(), cell), torch.ones(2, 4))
    >>> layer = history["linear_1_1"]
    >>> len(layer), layer[2].layer_label_w_pass
    (2, 'linear_1_1:2')

    Made by a history. ``layer[n]`` is its n-th pass, from 1.
    """

    def __init__(self, graph: Graph, layer: Layer) -> None:
        self.graph = graph
        self._layer = layer

    @property
    def layer_label(self) -> str:
        """The label of the layer."""
        return self._layer.label

    @property
    def layer_type(self) -> str:
        """The canonical name of the function."""
        return self._layer.layer_type

    @property
    def layer_type_num(self) -> int:
        """Its number among the layers of its type, from 1."""
        return self._layer.type_number

    @property
    def layer_total_num(self) -> int:
        """Its number among all layers, from 1; 0 for inputs and buffers."""
        return self._layer.total_number

    @property
    def layer_passes_total(self) -> int:
        """How many passes it has."""
        return len(self._layer.ops)

    @property
    def passes(self) -> list[Operation]:
        """Its passes, in order."""
        return [Operation(self.graph, index) for index in self._layer.ops]

    def __len__(self) -> int:
        return len(self._layer.ops)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.passes)

    def __getitem__(self, number: int) -> Operation:
        if not 1 <= number <= len(self):
            raise RecordKeyError(f"{self.layer_label} has passes 1 to {len(self)}, not {number!r}")
        return self.passes[number - 1]

    @property
    def activation(self) -> Tensor | None:
        """The value, if there is only one pass."""
        if len(self) > 1:
            raise RecordKeyError(
                f"{self.layer_label} has {len(self)} passes, each with a value; give the pass: "
                f"history['{self.layer_label}:1']"
            )
        return self.passes[0].activation

    @property
    def parent_layers(self) -> list[str]:
        """The layers that any pass reads from."""
        return _layers_of(label for op in self for label in op.parent_layers)

    @property
    def child_layers(self) -> list[str]:
        """The layers that read from any pass."""
        return _layers_of(label for op in self for label in op.child_layers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerEntry) and other.graph is self.graph and other._layer == self._layer

    def __hash__(self) -> int:
        return hash((id(self.graph), self.layer_label))

    def __str__(self) -> str:
        lines = [f"Layer {self.layer_label}, {len(self)} passes:"]
        for op in self:
            parents = ", ".join(op.parent_layers) or "none"
            children = ", ".join(op.child_layers) or "none"
            lines.append(f"    {op.layer_label_w_pass}: {op.tensor_shape}, parents {parents}; children {children}")
        return "\n".join(lines)

    __repr__ = __str__


def _layers_of(labels: Iterable[str]) -> list[str]:
    """The layers of some operations, each once."""
    return list(dict.fromkeys(label.partition(":")[0] for label in labels))
