"""Arguments of calls as plain data, and back; nothing in it can be run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import torch

from fastrec._errors import DamagedFileError
from fastrec.graph._raw import Constant, Parameter, Ref, Stale

_PLAIN = (bool, float, str, type(None))
_OF_TORCH = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)

Tensors = Callable[[Any], Any]


class Opaque(msgspec.Struct, frozen=True):
    """An argument that a file can't hold, as it printed."""

    text: str

    def __repr__(self) -> str:
        return self.text


def encoded(value: Any, reference: Tensors) -> Any:
    """A nested argument as plain data; ``reference`` says how a tensor is named."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else ["int", str(value)]
    if kind in (tuple, list) or isinstance(value, tuple):
        return ["list" if kind is list else "tuple", [encoded(item, reference) for item in value]]
    if kind is dict:
        return ["dict", [[encoded(k, reference), encoded(v, reference)] for k, v in value.items()]]
    if kind is slice:
        return ["slice", [encoded(item, reference) for item in (value.start, value.stop, value.step)]]
    if isinstance(value, Ref | Stale | Parameter | Constant):
        return ["tensor", reference(value)]
    return _named(value)


def _named(value: Any) -> Any:
    if value is Ellipsis:
        return ["ellipsis"]
    if isinstance(value, torch.device):
        return ["device", str(value)]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, _OF_TORCH):
        return ["torch", str(value).removeprefix("torch.")]
    return ["opaque", repr(value)[:1000]]


def decoded(data: Any, reference: Tensors) -> Any:
    """What ``encoded`` was given, opaque things apart."""
    if not isinstance(data, list):
        return data
    match data:
        case ["tensor", told]:
            return reference(told)
        case ["list" | "tuple" | "slice" as name, list(items)]:
            found = [decoded(item, reference) for item in items]
            return found if name == "list" else tuple(found) if name == "tuple" else slice(*found)
        case ["dict", list(items)]:
            return {decoded(k, reference): decoded(v, reference) for k, v in items}
    return _unnamed(data)


def _unnamed(data: list[Any]) -> Any:
    match data:
        case ["ellipsis"]:
            return Ellipsis
        case ["int", str(text)]:
            return int(text)
        case ["device", str(text)]:
            return torch.device(text)
        case ["complex", real, imaginary]:
            return complex(real, imaginary)
        case ["torch", str(name)] if isinstance(found := getattr(torch, name, None), _OF_TORCH):
            return found
        case ["opaque", str(text)]:
            return Opaque(text)
    raise DamagedFileError(f"an argument in the file is none: {str(data)[:100]}")
