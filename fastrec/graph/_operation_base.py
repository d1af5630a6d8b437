"""What all facts of an operation are read from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastrec.graph._graph import Graph
from fastrec.graph._layers import Layer
from fastrec.graph._raw import Op

if TYPE_CHECKING:
    from fastrec.graph._history import ModelHistory


class Facts:
    """An operation of a history, by its index in the capture."""

    __slots__ = ("history", "index")

    def __init__(self, history: ModelHistory, index: int) -> None:
        self.history = history
        self.index = index

    @property
    def raw(self) -> Op:
        """What was captured."""
        return self.history.graph.ops[self.index]

    @property
    def _graph(self) -> Graph:
        return self.history.graph

    @property
    def _layer(self) -> Layer:
        return self.history.graph.layer(self.index)

    def _labels(self, indices: Iterable[int]) -> list[str]:
        return [self.history.graph.label(index) for index in indices]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Facts) and other.history is self.history and other.index == self.index

    def __hash__(self) -> int:
        return hash((id(self.history), self.index))
