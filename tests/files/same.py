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


def assert_same(
    recording: Recording, expected: Recording, first_pass: int = 0, cast: Cast = lambda value: value
) -> None:
    """The same records in the same order, with the same contexts and bits, and the same steps."""
    assert len(recording) == len(expected)
    for record, wanted in zip(recording, expected, strict=True):
        assert record.ctx.pass_index == wanted.ctx.pass_index + first_pass
        for name in CONTEXT:
            # Some were not observed, as then an attribute error says.
            assert getattr(record.ctx, name, None) == getattr(wanted.ctx, name, None), name
        for part in ("activation", "transformed_activation"):
            value, wanted_value = getattr(record, part), getattr(wanted, part)
            assert (value is None) == (wanted_value is None), part
            if value is not None:
                assert_equal(value, cast(wanted_value))
    assert list(recording.steps) == list(expected.steps)
    assert recording.steps.phase.tolist() == expected.steps.phase.tolist()
    assert recording.steps.step.tolist() == expected.steps.step.tolist()
    for name in expected.steps:
        column, expected_column = recording.steps[name], expected.steps[name]
        assert np.array_equal(np.ma.getmaskarray(column), np.ma.getmaskarray(expected_column))
        assert np.ma.allequal(column, expected_column) or np.array_equal(column, expected_column, equal_nan=True)


def assert_equal(value: torch.Tensor, expected: torch.Tensor) -> None:
    """The same shape, dtype and bits."""
    assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
    if value.numel():
        bits = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (value, expected))
        assert torch.equal(*bits)
