"""What a predicate answers, how two answers join, and what is no answer."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from fastrec._contracts import Context
from fastrec._errors import OptionError, PredicateError
from fastrec.events.capture import CaptureSpec, check_changes
from fastrec.predicates._printing import literal


class Changes(Mapping[str, Any]):
    """Fields of a CaptureSpec to change, in its order: checked, frozen, hashable."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        given = check_changes(dict(fields))
        self._fields = {name: given[name] for name in CaptureSpec.__struct_fields__ if name in given}

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __hash__(self) -> int:
        return hash(tuple(self._fields.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Changes, (self._fields,))

    def __repr__(self) -> str:
        return ", ".join(f"{name}={literal(value)}" for name, value in self._fields.items())


Answer = bool | Changes | CaptureSpec
"""A checked decision. Yes and no are the singletons True and False."""


def merge(left: Answer, right: Answer) -> Answer:
    """How to keep what both keep: the right one wins, and a full spec replaces."""
    if right is True:
        return left
    if isinstance(right, Changes) and isinstance(left, Changes):
        return Changes({**left, **right})
    if isinstance(right, Changes) and isinstance(left, CaptureSpec):
        return left.with_changes(dict(right))
    return right


def checked(answer: object, asked: object, ctx: Context, *, at: str = "event") -> Answer:
    """What a callable returned as an Answer; a PredicateError names the callable and the event."""
    if answer is None:
        return False
    if isinstance(answer, (bool, np.bool_)):
        return bool(answer)
    if isinstance(answer, (Changes, CaptureSpec)):
        return answer
    where = f"event {ctx.label!r} at site {ctx.site!r}" if at == "event" else f"site {ctx.site!r}"
    if isinstance(answer, Mapping):
        try:
            return Changes(answer)
        except OptionError as error:
            raise PredicateError(f"{asked!r} returned {_shown(answer)} for {where}: {error}") from error
    raise PredicateError(
        f"{asked!r} returned {_shown(answer)} for {where}; it has to return True, False, None (not kept) "
        f"or a CaptureSpec. {_remedy(answer)}"
    )


def _shown(answer: object) -> str:
    if isinstance(answer, torch.Tensor):
        return f"a tensor of shape {tuple(answer.shape)}"  # printing values would wait for the device
    return f"{reprlib.repr(answer)} ({type(answer).__name__})"


def _remedy(answer: object) -> str:
    if isinstance(answer, torch.Tensor):
        return "Decide by the fields of the context; a value computed elsewhere becomes a bool with .item()."
    if callable(answer):
        return "It is callable: call it, a predicate with the context, as in op('relu')(ctx)."
    return "`x and y` and `x or y` return one of their operands: wrap the whole in bool(...)."
