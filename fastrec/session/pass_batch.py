"""Keeping the values of a pass without copying them, where nobody else can reach them any more.

This is for loops without gradients that pop each pass, in the static and the compiled engine. There copying is most of
what keeping costs, above all by the memory that it touches: without this file such a loop takes 7 to 35 percent longer
(an MLP and a NatureCNN, batches of 1 to 64, all activations kept).

**Why it is right.** A recorded value is copied because somebody may write into it later. When the pass ends, most
values of a pass have no owner but the recorder: the model's own variables are gone. If nobody else has a value, nobody
can write into it, so it can be kept as it is. Three things could break this, and each is checked for every value of
every pass:

- *Somebody has the tensor, or a view of its memory*: the model's caller, a buffer, autograd. ``have_sole_owner``
  compares reference counts: those of the Python object, of the C++ tensor and of its storage.
- *Somebody has written into it* between its event and the end of the pass. Its version counter is compared with the one
  that values at this position have shown before.
- *Another library has its memory*, which no reference count shows: ``own_their_storage``.

Where one of them fails, the values are copied, or the pass fails if it is too late for a right copy.

**How it goes.**

1. While it warms up, an engine learns which values are still as they were when a pass ends (``Warmup.lasting``), and
   offers the taps of a pass to ``pass_batch``. Taps that ask predicates, cast or transform are fed at their events.
2. In a later pass the engine puts the values into a list instead of calling taps, and calls the batch at the end.
3. The batch looks up what it knows about passes with values like these (one guard for all of them), does the checks,
   and puts an ``UncopiedPass`` in the place of the rows of the run.
4. The RAM sink takes it as it is. Blocks are made of its values when a recording is read; a pass that is popped and
   dropped costs nothing more. The pool says when no more passes should be kept like this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from fastrec._errors import BrokenPromiseError
from fastrec._torch.tensors import TensorsGuard, have_sole_owner, never_matches, own_their_storage, tensors_guard
from fastrec.engines._protocol import Tap
from fastrec.session.taps import KeepTap, PassRun
from fastrec.sinks import RAMSink
from fastrec.sinks._protocol import Sink
from fastrec.sinks.ram.pool import MAX_UNCOPIED_VALUES, UncopiedPass

MAX_SHAPES = 64
"""Shapes of the first value that a batch remembers before it forgets them all."""

MAX_SHARED_PASSES = 8
"""Passes in a row in which somebody else had some value, after which a batch gives up."""

_grad_is_on = torch.is_grad_enabled


def pass_batch(sink: Sink | None, taps: Sequence[Tap], versions: Sequence[int] | None) -> UncopiedBatch | None:
    """A batch of some taps; None where one of them has to be fed at its event, or values do not go to RAM alone."""
    keep_taps = [tap for tap in taps if isinstance(tap, KeepTap) and tap.is_plain]
    if not 0 < len(keep_taps) <= MAX_UNCOPIED_VALUES or len(keep_taps) < len(taps) or not isinstance(sink, RAMSink):
        return None
    return UncopiedBatch(keep_taps, versions, sink)


class UncopiedBatch:
    """The taps of all values of passes that run alike, in event order.

    ``versions`` are what the values' version counters show at the end of a pass if nobody has written into the values;
    None where the values have just been computed, so that nobody can have.
    """

    def __init__(self, taps: Sequence[KeepTap], versions: Sequence[int] | None, sink: RAMSink) -> None:
        self._taps = taps
        self._versions = None if versions is None else list(versions)
        self._pool = sink.pool
        self._next_number = sink.pool.next_uncopied_number
        # The metas of a pass and the guard of its values, by the shape of the first value.
        self._metas_and_guards: dict[torch.Size, tuple[list[int], TensorsGuard]] = {}
        self._last: tuple[list[int], TensorsGuard] = ([], never_matches)
        self._n_shared_passes = 0

    def is_ready(self) -> bool:
        """Whether the engine should collect the values of the pass that begins; else it feeds the taps one by one."""
        # With gradients on, autograd has most of them too.
        return self._n_shared_passes < MAX_SHARED_PASSES and self._pool.takes_uncopied and not _grad_is_on()

    def __call__(self, run: PassRun, values: list[Tensor], times: list[float]) -> None:
        """Keep the values of a pass that ends, or the first of them if it ends early; only this list may have them."""
        if len(values) < len(self._taps):  # an exception ended the pass early
            return self._copy(run, values, times)
        metas, guard = self._last
        if not guard(*values):
            metas_and_guard = self._metas_and_guards.get(values[0].shape)
            if metas_and_guard is None:
                self._copy(run, values, times)
                return self._learn(run, values)
            metas, guard = self._last = metas_and_guard
            if not guard(*values):
                return self._copy(run, values, times)
        versions = self._versions
        if versions is not None and [value._version for value in values] != versions:
            return self._copy(run, values, times)
        # Values that have just been computed by torch can't lie in the memory of another library.
        if not have_sole_owner(values) or (versions is not None and not own_their_storage(values)):
            self._n_shared_passes += 1
            return self._copy(run, values, times)
        self._n_shared_passes = 0
        run.metas, run.times = metas, times
        run.rows = cast(list[int], UncopiedPass(self._next_number(), values))  # the pass log knows both
        return None

    def _learn(self, run: PassRun, values: list[Tensor]) -> None:
        """Remember the metas that the taps gave to values like these."""
        if len(self._metas_and_guards) >= MAX_SHAPES:
            self._metas_and_guards.clear()
        if all(value.is_cpu and not value.requires_grad for value in values) and own_their_storage(values):
            # A copy, because this pass may have failed, and then its own lists are emptied.
            self._metas_and_guards[values[0].shape] = list(run.metas), tensors_guard(values)
        else:
            self._n_shared_passes = MAX_SHARED_PASSES

    def _copy(self, run: PassRun, values: list[Tensor], times: list[float]) -> None:
        """Feed the taps after all; the values have to be what they were at their events."""
        for tap, value, version in zip(self._taps, values, self._versions or (), strict=False):
            if value.is_inference() or value._version != version or not value.untyped_storage().resizable():
                raise BrokenPromiseError(
                    f"the value of {tap.site.name!r} was written to after it was computed, or lies in the memory of "
                    "another library, which was not so in any pass before. engine='static' is the promise that every "
                    "pass runs the same ops; use engine='eager' for this model"
                )
        for tap, value in zip(self._taps, values, strict=False):
            tap(run, value)
        run.times = times
