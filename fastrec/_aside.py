"""Work on tensors that nobody else takes part in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def aside() -> Iterator[None]:
    """Make tensors unseen by other recorders, and normal ones even where the user is in inference mode.

    A tensor made in inference mode could never be saved for a backward pass by whoever reads it.
    """
    with torch._C.DisableTorchFunction():
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                yield
        else:
            yield
