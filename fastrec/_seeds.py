"""Running one call with a fixed random seed, and the random state as it was afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch, numpy and Python's random inside of the block; None changes nothing."""
    if seed is None:
        yield
        return
    with random_state_restored():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


@contextmanager
def random_state_restored() -> Iterator[None]:
    """Leave the random state of torch, numpy and Python after the block as it was before."""
    state, numpy_state = random.getstate(), np.random.get_state()
    # By default it would start CUDA for a model on the CPU, and warn where there are several devices.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
