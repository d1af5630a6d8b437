"""Whether two recordings tell the same."""

from typing import Any

import torch
from torch import Tensor

from fastrec.events.context import FIELDS
from tests.helpers.naive import same_bits

_NOT_COMPARED = {"time_since_pass_start", "func_name", "recent_events", "recent_ops", "parent_labels"}


def facts_of(record: Any) -> dict[str, Any]:
    """All that a context tells, time and raw names aside."""
    ctx = record.ctx
    facts = {name: getattr(ctx, name) for name in FIELDS if name not in _NOT_COMPARED}
    for name in ("recent_events", "recent_ops"):
        events = getattr(ctx, name) if ctx.event_index is not None else ()
        facts[name] = [(e.kind, e.site, e.label, e.layer_type, e.layer_type_num, e.module_address) for e in events]
    return facts


def tensors_of(record: Any) -> list[Tensor]:
    return [t for t in (record.activation, record.transformed_activation) if t is not None]


def assert_same_recordings(found: Any, expected: Any, *, loose: bool = False) -> None:
    """Record by record: the same contexts in the same order, and equal values."""
    assert found.n_passes == expected.n_passes
    assert [facts_of(r) for r in found] == [facts_of(r) for r in expected]
    for mine, theirs in zip(found, expected, strict=True):
        for a, b in zip(tensors_of(mine), tensors_of(theirs), strict=True):
            assert torch.allclose(a, b) if loose else same_bits(a, b), mine
