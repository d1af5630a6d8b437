"""The tensors that a model holds: parameters, buffers, and those in plain attributes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from fastrec.graph._raw import Parameter


class ModelState:
    """Looks tensors of the model up by identity; with ``attributes``, those in plain attributes, too."""

    def __init__(self, roots: Mapping[str, nn.Module], *, attributes: bool) -> None:
        self._parameters: dict[int, Parameter] = {}
        self._buffers: dict[int, tuple[Tensor, str]] = {}
        self._attributes: dict[int, Tensor] | None = {} if attributes else None
        for root, model in roots.items():
            self._take(root, model, set())

    def _take(self, address: str, module: nn.Module, seen: set[int]) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        prefix = f"{address}." if address else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                self._parameters.setdefault(id(parameter), Parameter(prefix + name, parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                self._buffers.setdefault(id(buffer), (buffer, prefix + name))
        if self._attributes is not None:
            self._attributes.update({id(value): value for value in vars(module).values() if isinstance(value, Tensor)})
        for name, child in module._modules.items():
            if child is not None:
                self._take(prefix + name, child, seen)

    def parameter(self, value: Tensor) -> Parameter | None:
        """The parameter that a tensor is."""
        found = self._parameters.get(id(value))
        if found is not None and found.tensor is value:
            return found
        # One that was made during the pass, or that is held by nobody that torch knows of.
        if type(value) is not Tensor and isinstance(value, nn.Parameter):
            return self._parameters.setdefault(id(value), Parameter("", value))
        return None

    def buffer_address(self, value: Tensor) -> str | None:
        """The address of the buffer that a tensor is."""
        found = self._buffers.get(id(value))
        return found[1] if found is not None and found[0] is value else None

    def buffers_among(self, values: Iterable[Any]) -> Iterator[Tensor]:
        """Those of some values that are buffers."""
        return (v for v in values if isinstance(v, Tensor) and self.buffer_address(v) is not None)

    def holds(self, value: Tensor) -> bool:
        """Whether a tensor was an attribute of a module, where attributes were asked for."""
        return self._attributes is not None and self._attributes.get(id(value)) is value

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters, each once."""
        return list(self._parameters.values())

    @property
    def buffers(self) -> dict[str, Tensor]:
        """All buffers by address."""
        return {address: buffer for buffer, address in self._buffers.values()}
