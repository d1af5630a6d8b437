"""One record, and the list of them that is made while it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import msgspec
import numpy as np
from torch import Tensor

from fastrec.events.capture import CaptureSpec, kept_dtype
from fastrec.events.context import RecordContext, torch_dtype
from fastrec.events.sites import PassInfo
from fastrec.recording._source import Source
from fastrec.recording._view import View
from fastrec.statistics.html import table_html, values_html
from fastrec.statistics.values import real_numbers

MAX_RECORDS_SHOWN = 10


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

    __slots__ = ("_info", "_row", "_source", "_step", "_time", "_meta")

    def __init__(self, source: Source, record: tuple[int, int, float], info: PassInfo, step: int | None) -> None:
        self._source = source
        self._meta, self._row, self._time = record
        self._info = info
        self._step = step

    @property
    def ctx(self) -> RecordContext:
        """What the predicate could look at."""
        catalog = self._source.catalog
        return RecordContext(
            catalog,
            catalog.site_of(self._meta),
            catalog.metas[self._meta],
            self._info,
            self._time,
            self._step,
        )

    @property
    def spec(self) -> CaptureSpec:
        """How the value was copied."""
        catalog = self._source.catalog
        return catalog.specs[catalog.metas[self._meta].spec]

    @property
    def activation(self) -> Tensor | None:
        """The value; None where only its context or its transform was kept."""
        return self._source.value(self._meta, self._row, "activation")

    @property
    def transformed_activation(self) -> Tensor | None:
        """What the transform made of the value; None without one."""
        return self._source.value(self._meta, self._row, "transformed_activation")

    @property
    def gradient(self) -> Tensor | None:
        """The sum of the gradients that reached the value; None before a backward pass, or if not asked for."""
        return self._source.value(self._meta, self._row, "gradient")

    def __repr__(self) -> str:
        meta = self._source.catalog.metas[self._meta]
        shape = "x".join(map(str, meta.shape)) or "scalar"
        step = "" if self._step is None else f", step {self._step}"
        site = self._source.catalog.sites[meta.site].name
        return f"ActivationRecord({meta.label!r}, site={site!r}, {shape} {meta.dtype}, pass {self._info.index}{step})"

    def _repr_html_(self) -> str:
        ctx, value = self.ctx, self.activation
        value = self.transformed_activation if value is None else value
        facts = [
            ("site", ctx.site),
            ("module", f"{ctx.module_address} ({ctx.module_type})"),
            ("pass", f"{ctx.pass_index:,}"),
        ]
        facts += [("phase", ctx.phase)] if ctx.phase else []
        facts += [] if ctx.step is None else [("step", f"{ctx.step:,}")]
        return values_html(repr(self), None if value is None else real_numbers(value).numpy(), facts)


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

    def _repr_html_(self) -> str:
        rows = []
        for record in self[:MAX_RECORDS_SHOWN]:
            ctx = record.ctx
            shape = "x".join(map(str, ctx.tensor_shape)) or "scalar"
            step = "" if ctx.step is None else f"{ctx.step:,}"
            rows.append(
                (ctx.site, ctx.label, f"{ctx.pass_index:,}", step, shape, str(ctx.tensor_dtype).removeprefix("torch."))
            )
        more = [f"and {len(self) - len(rows):,} more"] if len(self) > len(rows) else []
        return table_html(f"{len(self):,} records", ("site", "label", "pass", "step", "shape", "dtype"), rows, more)

    def _make(self, position: int, info: PassInfo) -> ActivationRecord:
        view = self._view
        record = view.source.records()[view.at[position]].item()
        return ActivationRecord(view.source, record, info, view.step_of(info))


class SiteFacts(msgspec.Struct, frozen=True):
    """What a recording holds of one site: how many records in how many passes, of which shapes and dtypes."""

    name: str
    kind: str
    layer_type: str
    module_type: str
    count: int
    passes: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    nbytes: int


def sites_of(view: View) -> dict[str, SiteFacts]:
    """The facts of every site that occurs, by name, in the order in which they first occurred."""
    metas, first, inverse = np.unique(view.meta_numbers, return_index=True, return_inverse=True)
    counts = np.bincount(inverse, minlength=len(metas))
    nbytes = np.bincount(inverse, weights=view.source.nbytes(view.meta_numbers, view.rows), minlength=len(metas))
    by_name: dict[str, list[int]] = {}
    for i in np.argsort(first).tolist():
        by_name.setdefault(view.site(int(metas[i])).name, []).append(i)
    found = {}
    for name, members in by_name.items():
        numbers = [int(metas[i]) for i in members]
        site = view.site(numbers[0])
        fired = np.isin(inverse, members)
        found[name] = SiteFacts(
            name=name,
            kind=site.kind,
            layer_type=site.layer_type,
            module_type=site.module_type,
            count=int(counts[members].sum()),
            passes=len(np.unique(view.pass_at[fired])),
            shapes=tuple(dict.fromkeys(view.meta(number).shape for number in numbers)),
            dtypes=tuple(dict.fromkeys(_dtype(view, number) for number in numbers)),
            nbytes=int(nbytes[members].sum()),
        )
    return found


def told_shapes(facts: SiteFacts) -> str:
    """The shapes in a few words."""
    shown = ", ".join("x".join(map(str, shape)) or "scalar" for shape in facts.shapes[:3])
    return shown + (f" and {len(facts.shapes) - 3} more" if len(facts.shapes) > 3 else "")


def format_bytes(nbytes: int) -> str:
    """A number of bytes in a few words.

    >>> format_bytes(4096), format_bytes(3 * 2**20)
    ('4.0 KiB', '3.0 MiB')
    """
    size, units = float(nbytes), iter(("KiB", "MiB", "GiB", "TiB"))
    if size < 1024:
        return f"{nbytes} B"
    unit = ""
    while size >= 1024 and (larger := next(units, None)):
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}"


def table_of(sites: Mapping[str, SiteFacts]) -> list[tuple[str, ...]]:
    """Heading and rows of a table of sites."""
    rows: list[tuple[str, ...]] = [("site", "kind", "records", "passes", "shape", "dtype", "bytes")]
    for facts in sites.values():
        rows.append(
            (
                facts.name,
                facts.kind,
                str(facts.count),
                str(facts.passes),
                told_shapes(facts),
                ", ".join(facts.dtypes),
                format_bytes(facts.nbytes),
            )
        )
    return rows


def _dtype(view: View, meta: int) -> str:
    dtype = torch_dtype(view.meta(meta).dtype)
    return str(kept_dtype(view.spec(meta), dtype)).removeprefix("torch.")


def summary_of(heading: str, sites: Mapping[str, SiteFacts]) -> str:
    """One line for the whole and one per site, in columns."""
    rows = table_of(sites)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    total = format_bytes(sum(facts.nbytes for facts in sites.values()))
    return "\n".join([f"{heading}, {total}", *(lines if sites else [])])
