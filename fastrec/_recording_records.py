"""One record, and the list of them that is made while it is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from torch import Tensor

from fastrec._contracts import Source
from fastrec._recording_view import View
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import RecordContext
from fastrec.events.sites import PassInfo


class ActivationRecord:
    """One kept value, with the context in which it appeared.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> record = fastrec.record(model, torch.ones(2, 4), keep_op="relu")[0]
    >>> record
    ActivationRecord('relu_1', site='1/relu', 2x8 float32, pass 0)
    >>> record.activation.shape, record.ctx.module_type
    (torch.Size([2, 8]), 'ReLU')

    A tensor that was copied is a view of the memory in which the recording keeps it.
    """

    __slots__ = ("_info", "_row", "_source", "_step", "_time", "_variant")

    def __init__(self, source: Source, record: tuple[int, int, float], info: PassInfo, step: int | None) -> None:
        self._source = source
        self._variant, self._row, self._time = record
        self._info = info
        self._step = step

    @property
    def ctx(self) -> RecordContext:
        """What the predicate could look at."""
        catalog = self._source.catalog
        return RecordContext(
            catalog,
            catalog.site_of(self._variant),
            catalog.variants[self._variant],
            self._info,
            self._time,
            self._step,
        )

    @property
    def spec(self) -> CaptureSpec:
        """How the value was copied."""
        catalog = self._source.catalog
        return catalog.specs[catalog.variants[self._variant].spec]

    @property
    def activation(self) -> Tensor | None:
        """The value; None where only its context or its transform was kept."""
        return self._source.value(self._variant, self._row, "activation")

    @property
    def transformed_activation(self) -> Tensor | None:
        """What the transform made of the value; None without one."""
        return self._source.value(self._variant, self._row, "transformed_activation")

    @property
    def gradient(self) -> Tensor | None:
        """The sum of the gradients that reached the value; None before a backward pass, or if not asked for."""
        return self._source.value(self._variant, self._row, "gradient")

    def __repr__(self) -> str:
        variant = self._source.catalog.variants[self._variant]
        shape = "x".join(map(str, variant.shape)) or "scalar"
        step = "" if self._step is None else f", step {self._step}"
        site = self._source.catalog.sites[variant.site].name
        return (
            f"ActivationRecord({variant.label!r}, site={site!r}, {shape} {variant.dtype}, "
            f"pass {self._info.index}{step})"
        )


class Records(Sequence[ActivationRecord]):
    """The records of a view, each made when it is asked for."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __len__(self) -> int:
        return len(self._view)

    @overload
    def __getitem__(self, index: int) -> ActivationRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ActivationRecord]: ...
    def __getitem__(self, index: int | slice) -> ActivationRecord | list[ActivationRecord]:
        if isinstance(index, slice):
            return list(Records(self._view.take(np.arange(len(self))[index])))
        position = range(len(self))[index]
        return self._make(position, self._view.info(int(self._view.pass_at[position])))

    def __iter__(self) -> Iterator[ActivationRecord]:
        at, info = -1, None
        for position, pass_at in enumerate(self._view.pass_at.tolist()):
            if pass_at != at or info is None:
                at, info = pass_at, self._view.info(pass_at)
            yield self._make(position, info)

    def __repr__(self) -> str:
        return f"<{len(self)} records>"

    def _make(self, position: int, info: PassInfo) -> ActivationRecord:
        view = self._view
        record = view.source.records()[view.at[position]].item()
        return ActivationRecord(view.source, record, info, view.step_of(info))
