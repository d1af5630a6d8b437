"""Under which keys a history finds an operation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from fastrec._errors import RecordKeyError, did_you_mean
from fastrec.graph.structure import Graph

Found = list[int]
"""The operations that a key names, several only where the key is a layer or a module of several passes."""


class Keys:
    """Labels, module addresses and ordinal numbers; numbers count the operations in ``numbered`` only."""

    def __init__(self, graph: Graph, numbered: Sequence[int]) -> None:
        self._graph = graph
        self._numbered = numbered

    def find(self, key: str | int) -> Found:
        """The operations of a key; RecordKeyError or IndexError where there are none."""
        if isinstance(key, str):
            found = self._by_name.get(key)
            if found is None:
                raise RecordKeyError(f"nothing is called {key!r}; {did_you_mean(key, self._by_name)}")
            return found
        if isinstance(key, bool) or not isinstance(key, int):
            raise RecordKeyError(
                f"{key!r} is no key; give a label ('relu_3_6'), a module's address ('features.3') or a number"
            )
        if not -len(self._numbered) <= key < len(self._numbered):
            raise RecordKeyError(f"there is no number {key} among {len(self._numbered)} operations")
        return [self._numbered[key]]

    def with_sites(self, key: str | int) -> Found:
        """The operations of a key, which may be a site of the fast path, too."""
        if isinstance(key, str) and key not in self._by_name and key in self._sites:
            return self._sites[key]
        return self.find(key)

    @cached_property
    def _sites(self) -> dict[str, Found]:
        found: dict[str, Found] = {}
        for index in self._graph.order:
            op = self._graph.ops[index]
            for name in dict.fromkeys((op.call.site, op.call.site + op.path)):
                found.setdefault(name, []).append(index)
        return found

    def of(self, index: int) -> list[str | int]:
        """All keys of an operation."""
        layer, number = self._graph.layer(index), self._graph.pass_numbers[index]
        names = [f"{name}:{number}" for name in dict.fromkeys((layer.short, layer.label))]
        if len(layer.ops) == 1:
            names += dict.fromkeys((layer.short, layer.label))
        names += self._modules_of.get(index, ())
        place = self._places.get(index)
        numbers = [] if place is None else [place - len(self._numbered), place]
        return [*numbers, *sorted(names)]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {index: place for place, index in enumerate(self._numbered)}

    @cached_property
    def _by_name(self) -> dict[str, Found]:
        found = {name: list(ops) for name, ops in self._modules.items()}
        for layer in self._graph.layers:
            for name in (layer.short, layer.label):
                found[name] = layer.ops  # a label goes before a module that is called like one
                for number, index in enumerate(layer.ops, 1):
                    found[f"{name}:{number}"] = [index]
        return found

    @cached_property
    def _modules(self) -> dict[str, Found]:
        """What left each module, and each pass of it."""
        found: dict[str, Found] = {}
        for call in self._graph.submodule_calls:
            exited = [op for op in call.exited if op in self._graph.positions]
            if exited:
                found.setdefault(call.address, []).extend(exited)
                found[call.label] = exited
        return {name: list(dict.fromkeys(ops)) for name, ops in found.items()}

    @cached_property
    def _modules_of(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for name, ops in self._modules.items():
            if len(ops) == 1:
                found.setdefault(ops[0], []).append(name)
        return found

    def selected(self, selectors: Iterable[str | int]) -> set[int]:
        """The operations that any of some selectors names: keys, or parts of labels such as ``"conv"``."""
        found: set[int] = set()
        for selector in selectors:
            if isinstance(selector, str) and selector not in self._by_name:
                part = {i for layer in self._graph.layers if selector in layer.label for i in layer.ops}
                if not part:
                    raise RecordKeyError(
                        f"layers_to_save has {selector!r}, which is neither a key nor a part of a label; "
                        f"{did_you_mean(selector, self._by_name)}"
                    )
                found |= part
            else:
                found.update(self.find(selector))
        return found
