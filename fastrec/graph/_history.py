"""The record of one forward pass, as people read it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cached_property

from torch import nn

from fastrec._errors import RecordKeyError
from fastrec.graph._graph import Graph
from fastrec.graph._history_facts import HistoryFacts
from fastrec.graph._history_show import shown
from fastrec.graph._keys import Keys
from fastrec.graph._layer import LayerEntry
from fastrec.graph._operation import Operation
from fastrec.graph._raw import Capture


class ModelHistory(HistoryFacts):
    """Everything that happened in one forward pass.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> history = log_forward_pass(model, torch.ones(2, 4))
    >>> history.layer_labels
    ['input_1', 'linear_1_1', 'relu_1_2', 'output_1']
    >>> history["relu_1"] == history[2] == history[-2] == history["1"]
    True

    Made by ``log_forward_pass``. A key is a label, with or without its total number and its pass (``relu_3_6``,
    ``relu_3``, ``relu_3:1``), the address of a module (what left it last), or an ordinal number among the operations
    whose values were saved, all of them where none was. A layer of several passes is a LayerEntry.
    """

    def __init__(self, capture: Capture, roots: Mapping[str, nn.Module], *, random_seed: int) -> None:
        self.graph = Graph(capture)
        self.roots = dict(roots)
        self.random_seed_used = random_seed
        self._entries: dict[int, Operation] = {}

    def operation(self, index: int) -> Operation:
        """The operation with an index of the capture."""
        entry = self._entries.get(index)
        if entry is None:
            entry = self._entries[index] = Operation(self, index)
        return entry

    @property
    def operations(self) -> Sequence[Operation]:
        """All operations in order, inputs, buffers and outputs included."""
        return [self.operation(index) for index in self.graph.order]

    def __len__(self) -> int:
        return len(self.numbered)

    def __iter__(self) -> Iterator[Operation]:
        return (self.operation(index) for index in self.numbered)

    def __getitem__(self, key: str | int) -> Operation | LayerEntry:
        found = self.keys.find(key)
        if len(found) == 1:
            return self.operation(found[0])
        layers = {id(self.graph.layer(index)) for index in found}
        if len(layers) == 1:
            return LayerEntry(self, self.graph.layer(found[0]))
        several = ", ".join(self.graph.label(index) for index in found)
        raise RecordKeyError(f"{key!r} names several operations: {several}; give the label of one")

    @cached_property
    def keys(self) -> Keys:
        """Finds operations by key."""
        return Keys(self.graph, self.numbered)

    def forget_all_but(self, wanted: Container[int]) -> None:
        """Let go of the values of all other operations."""
        for op in self.graph.ops:
            if op.index not in wanted:
                op.value = op.transformed = None
        for name in ("numbered", "keys", "_saved"):
            self.__dict__.pop(name, None)

    def __str__(self) -> str:
        return shown(self)

    __repr__ = __str__
