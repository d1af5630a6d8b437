"""Whether a value is like an earlier one, in one question: looking at each property in turn costs more than a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._C._dynamo.guards import TensorGuards

Alike = Callable[[Tensor], bool]


def alike(example: Tensor) -> Alike:
    """A test for values like this one: same class, shape, strides, dtype and device, and the same dispatch keys.

    The keys tell whether a value is lazily negated or conjugated, a batched wrapper, or made in inference mode. What
    is on in this thread (autocast, inference mode) counts too, so that the same value may be unlike itself elsewhere.
    Whether it requires a gradient does not count where gradients are off.
    """
    sizes, strides = list(example.shape), list(example.stride())
    guards: Any = TensorGuards  # torch's own stub for it tells another signature
    test: Alike = guards(example, dynamic_dims_sizes=[sizes], dynamic_dims_strides=[strides]).check
    return test


def unlike(value: Tensor) -> bool:
    """The test that no value passes."""
    return False
