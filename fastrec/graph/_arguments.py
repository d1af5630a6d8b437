"""The arguments of a call with references in place of tensors, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from fastrec.graph._raw import Constant, Parameter, Ref, Stale

Replace = Callable[[Any], Any]
REFERENCES = (Ref, Stale, Parameter, Constant)


def referenced(value: Any, reference: Callable[[Tensor], Any]) -> Any:
    """A nested argument with each tensor replaced by what a function makes of it; containers are new ones."""
    return mapped(value, lambda leaf: reference(leaf) if isinstance(leaf, Tensor) else leaf)


def filled(template: Any, tensor: Callable[[Any], Any]) -> Any:
    """Nested arguments with each reference replaced by what a function makes of it."""
    return mapped(template, lambda leaf: tensor(leaf) if isinstance(leaf, REFERENCES) else leaf)


def mapped(value: Any, replace: Replace) -> Any:
    """A nested value of tuples, lists, dicts and slices with each leaf replaced."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([mapped(item, replace) for item in value])
    if kind is dict:
        return {key: mapped(item, replace) for key, item in value.items()}
    if kind is slice:
        return slice(mapped(value.start, replace), mapped(value.stop, replace), mapped(value.step, replace))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*[mapped(item, replace) for item in value])
    return replace(value)


def flat(value: Any) -> Iterator[Any]:
    """The leaves of nested arguments."""
    kind = type(value)
    if kind is tuple or kind is list:
        for item in value:
            yield from flat(item)
    elif kind is dict:
        for item in value.values():
            yield from flat(item)
    elif kind is slice:
        yield from (value.start, value.stop, value.step)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for item in value:
            yield from flat(item)
    else:
        yield value


def without_tensors(template: Any) -> Any:
    """Nested arguments less their references, as far as anything is left; None where nothing is."""
    if isinstance(template, REFERENCES):
        return None
    kind = type(template)
    if kind is tuple or kind is list:
        kept = [item for item in template if not isinstance(item, REFERENCES)]
        if len(kept) < len(template) and not kept:
            return None
        return kind([without_tensors(item) for item in kept])
    if kind is dict:
        return {k: without_tensors(v) for k, v in template.items() if not isinstance(v, REFERENCES)}
    return template
