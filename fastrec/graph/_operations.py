"""Operations of a history as a sequence that can be narrowed by questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import overload

from fastrec._errors import OptionError
from fastrec.graph._graph import Graph
from fastrec.graph._operation import Operation


class Operations(Sequence[Operation]):
    """Some operations of a history, in execution order; each question gives those that it is true of.

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
    def __getitem__(self, place: int) -> Operation: ...
    @overload
    def __getitem__(self, place: slice) -> Operations: ...
    def __getitem__(self, place: int | slice) -> Operation | Operations:
        found = self._operations[place]
        return Operations(found) if isinstance(found, tuple) else found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def labels(self) -> list[str]:
        """Their labels."""
        return [each.history.graph.label(each.index) for each in self]

    def where(self, test: Callable[[Operation], bool]) -> Operations:
        """Those for which a function says yes."""
        return Operations(each for each in self if test(each))

    def of_type(self, *types: str) -> Operations:
        """Those of some layer types."""
        matches = _matcher(types)
        return self.where(lambda each: matches(each.layer_type))

    def inside(self, *addresses: str) -> Operations:
        """Those that ran in some modules, at any depth."""
        matches = _matcher(addresses)
        return self.where(lambda each: any(matches(address) for address in _around(each)))

    def with_parent(self, *types: str) -> Operations:
        """Those that read a value of some layer types."""
        return self._beside(types, lambda each: each.raw.parents)

    def with_child(self, *types: str) -> Operations:
        """Those whose value is read by some layer types."""
        return self._beside(types, lambda each: each.history.graph.children.get(each.index, ()))

    def _beside(self, types: Sequence[str], others: Callable[[Operation], Iterable[int]]) -> Operations:
        matches = _matcher(types)
        return self.where(lambda each: any(matches(each.history.operation(i).layer_type) for i in others(each)))

    def with_parameters(self) -> Operations:
        """Those that use parameters."""
        return self.where(lambda each: each.computed_with_params)

    def slowest(self, count: int) -> Operations:
        """Those that took longest, the slowest first."""
        return self._most(count, lambda each: each.func_time_elapsed)

    def largest(self, count: int) -> Operations:
        """Those with the largest values in bytes, the largest first."""
        return self._most(count, lambda each: each.tensor_fsize)

    def _most(self, count: int, amount: Callable[[Operation], float]) -> Operations:
        if type(count) is not int or count < 1:
            raise OptionError(f"{count!r} operations: give a whole number from 1 up")
        return Operations(sorted(self, key=lambda each: -amount(each))[:count])

    def __repr__(self) -> str:
        shown = ", ".join(self.labels[:8]) + (", ..." if len(self) > 8 else "")
        return f"<{len(self)} operations: {shown}>" if self else "<no operations>"


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    if {type(pattern) for pattern in patterns} != {str}:
        raise OptionError(f"patterns {patterns!r}: give one or more strings, such as 'conv*'")
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def _around(operation: Operation) -> Iterator[str]:
    """The addresses of the modules that an operation ran in."""
    call = operation.raw.module
    while call is not None:
        if call.address:
            yield call.address
        call = call.parent


def between(starts: Iterable[int], ends: Iterable[int], graph: Graph) -> list[int]:
    """The operations on any path from one of some operations to one of others, without these."""
    starts, ends = set(starts), set(ends)
    after: set[int] = set()
    before: set[int] = set()
    for index in graph.order:
        if any(parent in after or parent in starts for parent in graph.ops[index].parents):
            after.add(index)
    for index in reversed(graph.order):
        if any(child in before or child in ends for child in graph.children.get(index, ())):
            before.add(index)
    return [index for index in graph.order if index in after and index in before and index not in starts | ends]
