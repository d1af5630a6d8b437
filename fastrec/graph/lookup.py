"""How operations are found: by the keys of a history, and by the records of a fast recording."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from fastrec._errors import RecordKeyError, did_you_mean
from fastrec.events.context import RecordContext
from fastrec.graph.layers import Layer
from fastrec.graph.raw import Capture, CapturedOp, ModuleCall


class Keys:
    """Labels, module addresses and ordinal numbers, which count the operations in ``numbered`` only.

    A key names several operations only if it is a layer of several passes, or a module of several passes or values.
    """

    def __init__(
        self,
        ops: Sequence[CapturedOp],
        order: Sequence[int],
        layers: Sequence[Layer],
        module_calls: Sequence[ModuleCall],
        numbered: Sequence[int],
    ) -> None:
        self._ops = ops
        self._order = order
        self._layers = layers
        self._module_calls = module_calls
        self._numbered = numbered

    def find(self, key: str | int) -> list[int]:
        """The operations that a key names; RecordKeyError if there are none."""
        if isinstance(key, str):
            ops = self._by_name.get(key)
            if ops is None:
                raise RecordKeyError(f"nothing is called {key!r}; {did_you_mean(key, self._by_name)}")
            return ops
        if isinstance(key, bool) or not isinstance(key, int):
            raise RecordKeyError(
                f"{key!r} is not a key; give a label ('relu_3_6'), a module's address ('features.3') or a number"
            )
        if not -len(self._numbered) <= key < len(self._numbered):
            raise RecordKeyError(f"there is no number {key} among {len(self._numbered)} operations")
        return [self._numbered[key]]

    def find_with_sites(self, key: str | int) -> list[int]:
        """The operations that a key or a site of the fast path names."""
        if isinstance(key, str) and key not in self._by_name and key in self._by_site:
            return self._by_site[key]
        return self.find(key)

    def select(self, selectors: Iterable[str | int]) -> set[int]:
        """The operations that any of the selectors names: keys, or parts of labels such as ``"conv"``."""
        selected: set[int] = set()
        for selector in selectors:
            if isinstance(selector, str) and selector not in self._by_name:
                ops = {i for layer in self._layers if selector in layer.label for i in layer.ops}
                if not ops:
                    raise RecordKeyError(
                        f"layers_to_save has {selector!r}, which is neither a key nor a part of a label; "
                        f"{did_you_mean(selector, self._by_name)}"
                    )
                selected |= ops
            else:
                selected.update(self.find(selector))
        return selected

    def keys_of(self, index: int) -> list[str | int]:
        """All keys that name this operation alone."""
        layer, number = self._passes[index]
        names = [f"{name}:{number}" for name in dict.fromkeys((layer.short, layer.label))]
        if len(layer.ops) == 1:
            names += dict.fromkeys((layer.short, layer.label))
        names += self._module_names.get(index, ())
        position = self._positions.get(index)
        numbers = [] if position is None else [position - len(self._numbered), position]
        return [*numbers, *sorted(names)]

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        by_name = dict(self._by_module)
        for layer in self._layers:
            for name in (layer.short, layer.label):
                by_name[name] = layer.ops  # a label wins over a module of the same name
                for number, index in enumerate(layer.ops, 1):
                    by_name[f"{name}:{number}"] = [index]
        return by_name

    @cached_property
    def _by_module(self) -> dict[str, list[int]]:
        """What left each module, and each pass of it."""
        known = set(self._order)
        by_module: dict[str, list[int]] = {}
        for call in self._module_calls:
            exited = [op for op in call.exited if op in known]
            if exited:
                by_module.setdefault(call.address, []).extend(exited)
                by_module[call.label] = exited
        return {name: list(dict.fromkeys(ops)) for name, ops in by_module.items()}

    @cached_property
    def _by_site(self) -> dict[str, list[int]]:
        by_site: dict[str, list[int]] = {}
        for index in self._order:
            op = self._ops[index]
            for name in dict.fromkeys((op.call.site, op.call.site + op.path)):
                by_site.setdefault(name, []).append(index)
        return by_site

    @cached_property
    def _passes(self) -> dict[int, tuple[Layer, int]]:
        return {index: (layer, number) for layer in self._layers for number, index in enumerate(layer.ops, 1)}

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {index: position for position, index in enumerate(self._numbered)}

    @cached_property
    def _module_names(self) -> dict[int, list[str]]:
        names: dict[int, list[str]] = {}
        for name, ops in self._by_module.items():
            if len(ops) == 1:
                names.setdefault(ops[0], []).append(name)
        return names


class RecordFinder:
    """Finds operations by what the fast path calls their events: site, label and leaf."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    def index_of(self, ctx: RecordContext) -> int:
        """The operation whose value an event is about, orphans included; RecordKeyError where there is none."""
        site, path = ctx.site, ctx.input_output_address or ""
        if ctx.kind in ("input", "buffer"):
            index = self._sources.get(site)
        elif ctx.kind == "op":
            index = self._ops.get((ctx.label.removesuffix(path), site.removesuffix(path), path))
        else:
            index = self._modules.get((ctx.kind, ctx.module_address, ctx.module_pass_index, path))
        if index is None:
            raise RecordKeyError(f"no operation of this history is the {ctx.kind} {ctx.label!r} at {site!r}")
        return index

    @cached_property
    def _sources(self) -> dict[str, int]:
        sources: dict[str, int] = {}
        for op in self._capture.ops:
            if op.kind in ("input", "buffer"):
                sources.setdefault(op.call.site, op.index)
        return sources

    @cached_property
    def _ops(self) -> dict[tuple[str, str, str], int]:
        ops = {(op.call.label, op.call.site, op.path): op.index for op in self._capture.ops if op.kind == "op"}
        return {**self._capture.composites, **ops}  # a composite that is an op itself is found as that op

    @cached_property
    def _modules(self) -> dict[tuple[str, str | None, int | None, str], int]:
        modules: dict[tuple[str, str | None, int | None, str], int] = {}
        for call in self._capture.module_calls:
            for kind, leaves in (("module_enter", call.entered_at), ("module_exit", call.exited_at)):
                for path, op in leaves.items():
                    modules[kind, call.address, call.number, path] = op
        return modules
