"""Whether two recordings hold the same."""

from collections.abc import Callable

import numpy as np
import torch

from fastrec import Recording

CONTEXT = (
    *("label", "site", "kind", "layer_type", "func_name", "module_address", "tensor_shape", "tensor_dtype", "entry"),
    *("entry_pass", "phase", "step", "sample_id", "grad_enabled", "recent_ops", "module_stack", "event_index"),
)
Cast = Callable[[torch.Tensor], torch.Tensor]


def assert_same(found: Recording, wanted: Recording, first_pass: int = 0, cast: Cast = lambda value: value) -> None:
    """The same records in the same order, with the same contexts and bits, and the same steps."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.ctx.pass_index == other.ctx.pass_index + first_pass
        for name in CONTEXT:
            # Some were not observed, as then an attribute error says.
            assert getattr(one.ctx, name, None) == getattr(other.ctx, name, None), name
        for part in ("activation", "transformed_activation"):
            mine, theirs = getattr(one, part), getattr(other, part)
            assert (mine is None) == (theirs is None), part
            if mine is not None:
                assert_equal(mine, cast(theirs))
    assert list(found.steps) == list(wanted.steps)
    assert found.steps.phase.tolist() == wanted.steps.phase.tolist()
    assert found.steps.step.tolist() == wanted.steps.step.tolist()
    for name in wanted.steps:
        mine_, theirs_ = found.steps[name], wanted.steps[name]
        assert np.array_equal(np.ma.getmaskarray(mine_), np.ma.getmaskarray(theirs_))
        assert np.ma.allequal(mine_, theirs_) or np.array_equal(mine_, theirs_, equal_nan=True)


def assert_equal(one: torch.Tensor, other: torch.Tensor) -> None:
    """The same shape, dtype and bits."""
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    if one.numel():
        bits = (value.detach().contiguous().reshape(-1).view(torch.uint8) for value in (one, other))
        assert torch.equal(*bits)
