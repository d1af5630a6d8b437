"""What the header of a recording says of its recorder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastrec.predicates import parse
from fastrec.predicates._base import PredicateBase


def predicates_of(header: Mapping[str, Any]) -> dict[str, PredicateBase]:
    """The predicates by the names of their options, read back from text; PredicateError for one that can't be."""
    return {name: parse(header[name]) for name in ("keep_op", "keep_module") if header.get(name) is not None}
