"""Records, made one by one when they are read, and what a recording holds per site.

A record is a meta, a row and a time in the arrays of a source, and becomes an ``ActivationRecord`` when somebody asks
for it. What ``summary()`` shows is worked out from the arrays, without making a record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import msgspec
import numpy as np
from torch import Tensor

from fastrec._errors import RecordKeyError
from fastrec.events.capture import CaptureSpec, kept_dtype
from fastrec.events.context import RecordContext, dtype_name, format_shape, torch_dtype
from fastrec.events.sites import PassInfo, RecordMeta
from fastrec.predicates._addresses import AddressGlobs, nearest
from fastrec.recording._arrays import real_array
from fastrec.recording._source import Source
from fastrec.recording._view import View
from fastrec.report.html import table_html, values_html

MAX_RECORDS_SHOWN = 10


class ActivationRecord:
    """One kept value, with the context in which it appeared.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> record = fastrec.record(model, torch.ones(2, 4), keep_op="relu")[0]
    >>> record
    ActivationRecord('relu_1', site='1/relu', 2x8 float32 detached, pass 0)
    >>> record.activation.shape, record.ctx.module_type
    (torch.Size([2, 8]), 'ReLU')

    A tensor that was copied is a view of the memory in which the recording keeps it.
    """

    __slots__ = ("_info", "_meta", "_row", "_source", "_step", "_time")

    def __init__(self, source: Source, meta_row_time: tuple[int, int, float], info: PassInfo, step: int | None) -> None:
        self._source = source
        self._meta, self._row, self._time = meta_row_time
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
        """The result of the transform; None without one."""
        return self._source.value(self._meta, self._row, "transformed_activation")

    @property
    def gradient(self) -> Tensor | None:
        """The sum of the gradients that reached the value; None before ``backward``, or without ``save_gradient``."""
        return self._source.value(self._meta, self._row, "gradient")

    def __repr__(self) -> str:
        meta = self._source.catalog.metas[self._meta]
        shape = format_shape(meta.shape)
        step = "" if self._step is None else f", step {self._step}"
        site = self._source.catalog.sites[meta.site].name
        detached = " detached" if is_detached(meta, self.spec) else ""
        where = f"pass {self._info.index}{step}"
        return f"ActivationRecord({meta.label!r}, site={site!r}, {shape} {meta.dtype}{detached}, {where})"

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
        return values_html(repr(self), None if value is None else real_array(value), facts)


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
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no record {index}: there are {format_count(len(self), 'record')}")
        position = range(len(self))[index]
        return self._make(position, self._view.info(int(self._view.pass_positions[position])))

    def __iter__(self) -> Iterator[ActivationRecord]:
        # Consecutive records are mostly of one pass, and share its info.
        last_pass, info = -1, None
        for position, pass_position in enumerate(self._view.pass_positions.tolist()):
            if pass_position != last_pass or info is None:
                last_pass, info = pass_position, self._view.info(pass_position)
            yield self._make(position, info)

    def __repr__(self) -> str:
        return f"<{len(self)} records>"

    def _repr_html_(self) -> str:
        rows = []
        for record in self[:MAX_RECORDS_SHOWN]:
            ctx = record.ctx
            step = "" if ctx.step is None else f"{ctx.step:,}"
            shape, dtype = format_shape(ctx.tensor_shape), dtype_name(ctx.tensor_dtype)
            rows.append((ctx.site, ctx.label, f"{ctx.pass_index:,}", step, shape, dtype))
        more = [f"and {len(self) - len(rows):,} more"] if len(self) > len(rows) else []
        return table_html(f"{len(self):,} records", ("site", "label", "pass", "step", "shape", "dtype"), rows, more)

    def _make(self, position: int, info: PassInfo) -> ActivationRecord:
        view = self._view
        meta_row_time = view.source.records()[view.positions[position]].item()
        return ActivationRecord(view.source, meta_row_time, info, view.step_of(info))


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
    detached: bool = False


def is_detached(meta: RecordMeta, spec: CaptureSpec) -> bool:
    """Whether the model's own value had a gradient and the kept one has none, so that no loss reaches the model."""
    return meta.requires_grad and spec.save_activation and not spec.keep_grad


def matching_sites(sites: Sequence[SiteFacts], globs: Sequence[str]) -> list[SiteFacts]:
    """The sites that match one of some globs; a glob that matches none is an error."""
    for glob in globs:
        if not any(facts.name in AddressGlobs((glob,)) for facts in sites):
            raise RecordKeyError(f"no site matches {glob!r}; {nearest(glob, [facts.name for facts in sites])}")
    return [facts for facts in sites if facts.name in AddressGlobs(tuple(globs))]


def sites_of(view: View) -> dict[str, SiteFacts]:
    """The facts of every site that occurs, by name, in the order in which they first occurred."""
    metas, first, inverse = np.unique(view.meta_numbers, return_index=True, return_inverse=True)
    counts = np.bincount(inverse, minlength=len(metas))
    nbytes = np.bincount(inverse, weights=view.source.nbytes(view.meta_numbers, view.rows), minlength=len(metas))
    indices_by_name: dict[str, list[int]] = {}
    for i in np.argsort(first).tolist():
        indices_by_name.setdefault(view.site(int(metas[i])).name, []).append(i)
    sites = {}
    for name, indices in indices_by_name.items():
        numbers = [int(metas[i]) for i in indices]
        site = view.site(numbers[0])
        sites[name] = SiteFacts(
            name=name,
            kind=site.kind,
            layer_type=site.layer_type,
            module_type=site.module_type,
            count=int(counts[indices].sum()),
            passes=len(np.unique(view.pass_positions[np.isin(inverse, indices)])),
            shapes=tuple(dict.fromkeys(view.meta(number).shape for number in numbers)),
            dtypes=tuple(dict.fromkeys(_kept_dtype_name(view, number) for number in numbers)),
            nbytes=int(nbytes[indices].sum()),
            detached=any(is_detached(view.meta(number), view.spec(number)) for number in numbers),
        )
    return sites


def _kept_dtype_name(view: View, meta: int) -> str:
    return dtype_name(kept_dtype(view.spec(meta), torch_dtype(view.meta(meta).dtype)))


def summary_of(heading: str, sites: Mapping[str, SiteFacts]) -> str:
    """A line for the recording and a line for each site, in columns; with what lost its gradient, if anything did."""
    rows = table_of(sites)
    if any(facts.detached for facts in sites.values()):
        notes = ["grad", *("detached" if facts.detached else "" for facts in sites.values())]
        rows = [(*row, note) for row, note in zip(rows, notes, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    total = format_bytes(sum(facts.nbytes for facts in sites.values()))
    return "\n".join([f"{heading}, {total}", *(lines if sites else [])])


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
                format_shapes(facts.shapes),
                ", ".join(facts.dtypes),
                format_bytes(facts.nbytes),
            )
        )
    return rows


def format_shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    """Shapes as they are shown to people, of many only the first three."""
    listed = ", ".join(map(format_shape, shapes[:3]))
    return listed + (f" and {len(shapes) - 3} more" if len(shapes) > 3 else "")


def format_bytes(nbytes: int) -> str:
    """A number of bytes as it is shown to people.

    >>> format_bytes(4096), format_bytes(3 * 2**20)
    ('4.0 KiB', '3.0 MiB')
    """
    if nbytes < 1024:
        return f"{nbytes} B"
    units = ("KiB", "MiB", "GiB", "TiB")
    power = 1
    while nbytes >= 1024 ** (power + 1) and power < len(units):
        power += 1
    return f"{nbytes / 1024**power:.1f} {units[power - 1]}"


def format_count(number: int, thing: str, plural: str = "") -> str:
    """How many of something.

    >>> format_count(1, "pass", "passes"), format_count(3, "record")
    ('1 pass', '3 records')
    """
    return f"{number} {thing if number == 1 else plural or thing + 's'}"
