"""A layer: all passes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from fastrec._errors import RecordKeyError
from fastrec.graph._layers import Layer
from fastrec.graph._operation import Operation

if TYPE_CHECKING:
    from fastrec.graph._history import ModelHistory


class LayerEntry:
    """A layer of a history: operations that are passes of the same layer.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> cell = torch.nn.Linear(4, 4)
    >>> history = log_forward_pass(torch.nn.Sequential(cell, torch.nn.ReLU(), cell), torch.ones(2, 4))
    >>> layer = history["linear_1_1"]
    >>> len(layer), layer[2].layer_label_w_pass
    (2, 'linear_1_1:2')

    Arguments: made by a history. ``layer[n]`` is its n-th pass, from 1.
    """

    def __init__(self, history: ModelHistory, layer: Layer) -> None:
        self.history = history
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
        """The how-manieth layer of its type it is, from 1."""
        return self._layer.type_number

    @property
    def layer_total_num(self) -> int:
        """The how-manieth layer it is, from 1; 0 for inputs and buffers."""
        return self._layer.total_number

    @property
    def layer_passes_total(self) -> int:
        """How many passes it has."""
        return len(self._layer.ops)

    @property
    def passes(self) -> list[Operation]:
        """Its passes, in order."""
        return [self.history.operation(index) for index in self._layer.ops]

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
        """The value, where there is one pass."""
        if len(self) > 1:
            raise RecordKeyError(
                f"{self.layer_label} has {len(self)} passes, each with a value; give the pass: "
                f"history['{self.layer_label}:1']"
            )
        return self.passes[0].activation

    @property
    def parent_layers(self) -> list[str]:
        """The layers that any pass reads from."""
        return self._related("parent_layers")

    @property
    def child_layers(self) -> list[str]:
        """The layers that read from any pass."""
        return self._related("child_layers")

    def _related(self, name: str) -> list[str]:
        return list(dict.fromkeys(label.partition(":")[0] for each in self.passes for label in getattr(each, name)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerEntry) and other._layer is self._layer

    def __hash__(self) -> int:
        return id(self._layer)

    def __str__(self) -> str:
        lines = [f"Layer {self.layer_label}, {len(self)} passes:"]
        for each in self.passes:
            parents = ", ".join(each.parent_layers) or "none"
            children = ", ".join(each.child_layers) or "none"
            lines.append(f"    {each.layer_label_w_pass}: {each.tensor_shape}, parents {parents}; children {children}")
        return "\n".join(lines)

    __repr__ = __str__
