"""Whether a value is like an earlier one, in one question: looking at each property in turn costs more than a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch._C._dynamo.guards import TensorGuards

Alike = Callable[[Tensor], bool]
AllAlike = Callable[..., bool]


def alike(example: Tensor) -> Alike:
    """A test for values like this one: same class, shape, strides, dtype and device, and the same dispatch keys.

    The keys tell whether a value is lazily negated or conjugated, a batched wrapper, or made in inference mode. What
    is on in this thread (autocast, inference mode) counts too, so that the same value may be unlike itself elsewhere.
    Whether it requires a gradient does not count where gradients are off.
    """
    return all_alike([example])


def all_alike(examples: Sequence[Tensor]) -> AllAlike:
    """The same for several values in one question, which cost less so than one by one."""
    guards: Any = TensorGuards  # torch's own stub for it tells another signature
    test: AllAlike = guards(
        *examples,
        dynamic_dims_sizes=[list(example.shape) for example in examples],
        dynamic_dims_strides=[list(example.stride()) for example in examples],
    ).check
    return test


def unlike(*values: Tensor) -> bool:
    """The test that no value passes."""
    return False
