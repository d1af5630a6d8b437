"""Which ops may run inside a Python function or a module: asked by an engine before it decides whether to look inside.

    >>> import torch.nn.functional as F
    >>> "relu" in inner_layer_types(F.multi_head_attention_forward)
    False

To open a composite, or to take a module off its fused path, costs time and changes the last bits of a fused result. So
an engine does it only where the predicate may keep something inside. The answer may name ops that never run, but must
not miss one that does, or a record would be lost.

For torch's own functions the answer stands in ``composites.json``, which ``make composites`` writes from torch's source
and a test compares with the installed torch. The table holds for the releases of torch that it was made from and for no
other: between 2.4 and 2.13 more than half of these functions changed what they run. In any other release, as in
functions that aren't torch's, any op may run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import msgspec
import torch
from torch import nn, overrides

from fastrec._torch.internals import registered_op_names
from fastrec.ops.facts import op_facts, openable
from fastrec.ops.table import OPERATORS, canonical

TABLE_PATH = Path(__file__).with_name("composites.json")

TORCH_RELEASE = torch.__version__.partition("+")[0]
"""Without the part that says what it was built for, which the Python source does not depend on."""


ANYTHING = "*"


class Composites(msgspec.Struct, frozen=True):
    """The table: by function or class of modules, the layer types that may run inside in any of these releases."""

    releases: list[str]
    inside: dict[str, str]


def inner_layer_types(func: Callable[..., Any]) -> frozenset[str]:
    """The layer types of the events that may happen while a function runs, itself not counted."""
    layer_types = _known_layer_types(func)
    return _every_layer_type() if layer_types is None else layer_types


def forward_layer_types(kind: type[nn.Module]) -> frozenset[str]:
    """The layer types of the events that may happen while a module of this very class runs, its children not counted.

    Of a subclass nothing is known, for it may override the methods that torch's own ``forward`` calls.
    """
    layer_types = _table().get(qualified_name(kind))
    return _every_layer_type() if layer_types is None else layer_types


def _known_layer_types(func: Callable[..., Any]) -> frozenset[str] | None:
    """All that may run inside; None if it may be anything."""
    if isinstance(func, BuiltinFunctionType) and (func.__module__ or "").startswith("torch"):
        return frozenset()
    # Its globals tell where a function was written. Its names don't, for `functools.wraps` copies them.
    if not isinstance(func, FunctionType) or not func.__globals__.get("__name__", "").startswith("torch."):
        return None
    facts = op_facts(func)
    if facts is not None and not facts.composite and openable(func):
        return frozenset()  # a mode sees the call of the function, and it is one op
    return _table().get(qualified_name(func))


@cache
def _table() -> Mapping[str, frozenset[str]]:
    composites = read_composites()
    if TORCH_RELEASE not in composites.releases:
        return {}
    known = {name: text for name, text in composites.inside.items() if text != ANYTHING}
    return {name: frozenset(layer_types.split()) for name, layer_types in known.items()}


def read_composites(path: Path = TABLE_PATH) -> Composites:
    """The table as it stands in its file."""
    return msgspec.json.decode(path.read_bytes(), type=Composites)


def qualified_name(value: FunctionType | type) -> str:
    """The name of a function or a class in the table: `torch.nn.functional.softsign`."""
    # Torch makes some functions inside another one and renames them: `boolean_dispatch.<locals>.fn`.
    name = value.__name__ if "<locals>" in value.__qualname__ else value.__qualname__
    return f"{value.__module__}.{name}"


def _every_layer_type() -> frozenset[str]:
    """All ops there are now, the users' own included."""
    registered = (name.rpartition("::")[2].partition(".")[0] for name in registered_op_names())
    overridable = (
        facts.layer_type
        for functions in overrides.get_overridable_functions().values()
        for func in functions
        if (facts := op_facts(func)) is not None
    )
    return frozenset((*map(canonical, registered), *overridable, *OPERATORS.values()))
