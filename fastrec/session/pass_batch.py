"""Keeping all values of a pass in one go when it ends, and as they are where nobody else has them.

What copying costs is above all the memory that it touches. A value of which a pass that ends holds the last reference
needs no copy: nobody is left who could write into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrec._errors import BrokenPromiseError
from fastrec._torch.tensors import TensorsGuard, have_sole_owner, never_matches, own_their_storage, tensors_guard
from fastrec.engines._protocol import Tap
from fastrec.session.taps import KeepTap, PassRun
from fastrec.sinks import RAMSink
from fastrec.sinks._blocks import UncopiedPass
from fastrec.sinks.ram.pool import MAX_VALUES

MAX_SHAPES = 64
"""Shapes of the first value that a batch remembers, before it looks them up anew."""

MAX_SHARED_PASSES = 8
"""Passes in a row of which some value was not the recorder's alone, after which a batch is of no use."""

_grad_is_on = torch.is_grad_enabled


class UncopiedBatch:
    """The taps of all values of the passes that run alike, in event order.

    ``versions`` are what the values' version counters show when a pass ends, unless they were written to; None where
    the values have just been computed, so that nothing can have been.
    """

    def __init__(self, taps: Sequence[KeepTap], versions: Sequence[int] | None, sink: RAMSink) -> None:
        self._taps = taps
        self._versions = None if versions is None else list(versions)
        self._pool = sink.pool
        self._number = sink.pool.held_number
        self._known: dict[torch.Size, tuple[list[int], TensorsGuard]] = {}
        self._last: tuple[list[int], TensorsGuard] = ([], never_matches)
        self._shared = 0

    def is_ready(self) -> bool:
        """Whether the values of the pass that begins are to be held for it."""
        # With gradients on, autograd has most of them too.
        return self._shared < MAX_SHARED_PASSES and self._pool.holds and not _grad_is_on()

    def __call__(self, run: PassRun, values: list[Tensor], times: list[float]) -> None:
        """Keep the values of a pass that ends, the first of them if it ends early, from a list that alone has them."""
        if len(values) < len(self._taps):  # an exception ended the pass early
            return self._copy(run, values, times)
        metas, are_alike = self._last
        if not are_alike(*values):
            found = self._known.get(values[0].shape)
            if found is None:
                self._copy(run, values, times)
                return self._learn(run, values)
            metas, are_alike = self._last = found
            if not are_alike(*values):
                return self._copy(run, values, times)
        versions = self._versions
        if versions is not None and [value._version for value in values] != versions:
            return self._copy(run, values, times)
        if not have_sole_owner(values) or (versions is not None and not own_their_storage(values)):
            self._shared += 1
            return self._copy(run, values, times)
        self._shared = 0
        run.metas, run.rows, run.times = metas, UncopiedPass(self._number(), values), times
        return None

    def _learn(self, run: PassRun, values: list[Tensor]) -> None:
        if len(self._known) >= MAX_SHAPES:
            self._known.clear()
        if all(value.is_cpu and not value.requires_grad for value in values) and own_their_storage(values):
            self._known[values[0].shape] = run.metas, tensors_guard(values)
        else:
            self._shared = MAX_SHARED_PASSES

    def _copy(self, run: PassRun, values: list[Tensor], times: list[float]) -> None:
        for tap, value, version in zip(self._taps, values, self._versions or (), strict=False):
            if value.is_inference() or value._version != version or not value.untyped_storage().resizable():
                raise BrokenPromiseError(
                    f"the value of {tap.site.name!r} was written to after it was computed, or lies in the memory of "
                    "another library, which was so in no pass before. engine='static' is the promise that every pass "
                    "runs the same ops; use engine='eager' for this model"
                )
        for tap, value in zip(self._taps, values, strict=False):
            tap(run, value)
        run.times = times


def pass_batch(sink: Any, taps: Sequence[Tap[PassRun]], versions: Sequence[int] | None) -> UncopiedBatch | None:
    """A batch of some taps; None where one of them has to be fed at its event."""
    keepers = [tap for tap in taps if isinstance(tap, KeepTap) and tap.is_plain]
    if not 0 < len(keepers) <= MAX_VALUES or len(keepers) < len(taps) or not isinstance(sink, RAMSink):
        return None
    return UncopiedBatch(keepers, versions, sink)
