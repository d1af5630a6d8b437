"""Running one call with a fixed random seed, and the random state as it was afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from fastrec._state import random_state_restored


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
