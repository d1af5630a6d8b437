"""Many records as one tensor, one array or one table.

``stack_records`` is behind ``Recording.stack``: it checks from the metas alone that the values fit into one tensor, so
that an error costs no reading, and then asks the source for them. ``columns_of`` is behind ``Recording.to_pandas``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastrec._errors import GradientError, OptionError, RaggedError, RecordKeyError
from fastrec._optional import require
from fastrec._torch.tensors import outside_torch_modes
from fastrec.events.capture import kept_dtype
from fastrec.events.context import torch_dtype
from fastrec.events.sites import RecordMeta, Site
from fastrec.recording._source import PARTS, Array, Integers, Part
from fastrec.recording._view import View, base_name, rank_of_passes

if TYPE_CHECKING:
    import pandas


def stack_records(view: View, key: str, part: Part | None = None) -> Tensor:
    """The values of all records of a view along a first axis; a view of their memory where they lie side by side."""
    part = _resolve_part(view, part)
    _check_one_site(view, key)
    for what, read in (("shapes", _shape), ("dtypes", _dtype), ("devices", _device)):
        _check_one(view, key, what, read)
    try:
        pieces = view.source.values(view.meta_numbers, view.rows, part)
    except KeyError as missing:
        raise _missing_part_error(view, key, part, missing.args[0]) from None
    # What a transform made of a value has a shape that no meta tells.
    shapes: Counter[tuple[int, ...]] = Counter()
    for piece in pieces:
        shapes[tuple(piece.shape[1:])] += len(piece)
    if len(shapes) > 1:
        raise RaggedError(f"{part} of {key!r} has values of shapes {_format_counts(shapes)}; stack a selection of them")
    if len(pieces) == 1:
        return pieces[0]
    with outside_torch_modes():
        return torch.cat(list(pieces))


def split_by_pass(view: View, values: Tensor, key: str) -> Tensor:
    """Stacked values as [passes, firings, ...]; RaggedError where passes differ in the number of firings."""
    firings = np.unique(view.pass_positions, return_counts=True)[1]
    counts = Counter(firings.tolist())
    if len(counts) > 1:
        message = ", ".join(f"{number} in {passes} passes" for number, passes in counts.items())
        raise RaggedError(
            f"{key!r} fired a different number of times from pass to pass: {message}; use stack without by="
        )
    return values.reshape(len(firings), -1, *values.shape[1:])


def checked_layouts(
    view: View, key: str, part: Part | None
) -> tuple[Part, Integers, Sequence[tuple[tuple[int, ...], torch.dtype]]]:
    """The part that is meant; which layout each record has; and the layouts, of shape and dtype."""
    part = _resolve_part(view, part)
    _check_one_site(view, key)
    _check_one(view, key, "devices", _device)
    try:
        return part, *view.source.layouts(view.rows, part)
    except KeyError as missing:
        raise _missing_part_error(view, key, part, missing.args[0]) from None


def _resolve_part(view: View, part: Part | None) -> Part:
    if part is not None and part not in PARTS:
        raise OptionError(f"part={part!r}: choose one of {', '.join(map(repr, PARTS))}")
    has_raw_values = all(view.spec(meta).save_raw for meta in view.metas)
    return part or ("activation" if has_raw_values else "transformed_activation")


def _check_one_site(view: View, key: str) -> None:
    sites = {view.site(meta) for meta in view.metas}
    if len({site.name for site in sites}) > 1:
        names = Counter(view.site(meta).name for meta in view.meta_numbers.tolist())
        has_one_base = len({base_name(site) for site in sites}) == 1
        what = "several leaves" if has_one_base else "values of several sites"
        raise RaggedError(f"{key!r} has {what}: {_format_counts(names)}; stack one of them")


def _check_one(view: View, key: str, what: str, read: Callable[[View, int], Hashable]) -> None:
    """Raise RaggedError unless all metas of a view have the same shape, dtype or device."""
    by_meta = {meta: read(view, meta) for meta in view.metas}
    if len(set(by_meta.values())) > 1:
        counts = Counter(by_meta[meta] for meta in view.meta_numbers.tolist())
        shapes = [shape for shape in counts if isinstance(shape, tuple) and shape]
        by_sample = len(shapes) == len(counts) and len({shape[1:] for shape in shapes}) == 1
        remedy = f"recording.select(batch=...).stack({key!r})" if what == "shapes" else "a selection of them"
        remedy += f", or recording.stack({key!r}, by='sample') for the rows of all batches" if by_sample else ""
        raise RaggedError(f"{key!r} has values of {what} {_format_counts(counts)}; stack {remedy}")


def _shape(view: View, meta: int) -> tuple[int, ...]:
    # A transform such as a mean may give values of all shapes the same shape.
    return () if view.spec(meta).transform is not None else view.meta(meta).shape


def _dtype(view: View, meta: int) -> str:
    spec = view.spec(meta)
    return "" if spec.transform else str(kept_dtype(spec, torch_dtype(view.meta(meta).dtype)))


def _device(view: View, meta: int) -> str:
    device = view.spec(meta).device
    return view.meta(meta).device if device is None else str(torch.device(device))


def _missing_part_error(view: View, key: str, part: Part, position: int) -> Exception:
    meta = int(view.meta_numbers[position])
    label = view.meta(meta).label
    if part == "gradient" and view.spec(meta).save_gradient:
        return GradientError(f"no gradient has reached {label!r} yet (record {position} of {key!r}); call backward")
    return RecordKeyError(
        f"record {position} of {key!r} ({label!r}) was kept without its {part}: {view.spec(meta)}; "
        "its context is in recording[...]"
    )


def _format_counts(counts: Counter[Any]) -> str:
    more = f" and {len(counts) - 6} more" if len(counts) > 6 else ""
    return ", ".join(f"{what!r} ({number} records)" for what, number in list(counts.items())[:6]) + more


# The fields of a context that one cell of a table can hold; its stack and its history can't be in one.
META_FIELDS: dict[str, Callable[[RecordMeta, Site], Any]] = {
    "label": lambda meta, site: meta.label,
    "site": lambda meta, site: site.name,
    "kind": lambda meta, site: site.kind,
    "layer_type": lambda meta, site: site.layer_type,
    "layer_type_num": lambda meta, site: meta.number,
    "func_name": lambda meta, site: site.func_name,
    "module_address": lambda meta, site: site.module_address,
    "module_type": lambda meta, site: site.module_type,
    "module_pass_index": lambda meta, site: meta.module_pass,
    "event_index": lambda meta, site: meta.event_index,
    "op_index": lambda meta, site: meta.op_index,
    "output_index": lambda meta, site: site.output_index,
    "input_output_address": lambda meta, site: site.output_address,
    "tensor_shape": lambda meta, site: meta.shape,
    "tensor_dtype": lambda meta, site: meta.dtype,
    "tensor_device": lambda meta, site: meta.device,
    "tensor_requires_grad": lambda meta, site: meta.requires_grad,
    "is_bottom_level_func": lambda meta, site: site.is_bottom_level_func,
}


def frame_of(view: View) -> pandas.DataFrame:
    """One row per record, in order, with the fields of its context."""
    return frame_of_columns(columns_of(view))


def frame_of_columns(columns: Mapping[str, Any]) -> pandas.DataFrame:
    """Columns as a table of pandas."""
    frame: pandas.DataFrame = require("pandas", extra="pandas", what="to_pandas()").DataFrame(columns)
    return frame


def columns_of(view: View) -> dict[str, Array]:
    """The fields of the contexts as arrays, worked out per pass and per meta and not per record."""
    infos = [view.info(position) for position in range(len(view.passes))]
    pass_fields: dict[str, list[Any]] = {
        "pass_index": [info.index for info in infos],
        "phase": [view.catalog.phases[info.phase] for info in infos],
        "step": [view.step_of(info) for info in infos],
        "entry": [view.catalog.entries[info.entry] for info in infos],
        "entry_pass": [info.entry_pass for info in infos],
        "sample_id": [info.sample_id for info in infos],
        "grad_enabled": [info.grad for info in infos],
    }
    ranks = rank_of_passes(view)
    if ranks is not None:
        pass_fields["rank"] = ranks.tolist()
    columns = {name: _as_array(values)[view.pass_positions] for name, values in pass_fields.items()}
    numbers, inverse = np.unique(view.meta_numbers, return_inverse=True)
    metas = [(view.meta(number), view.site(number)) for number in numbers.tolist()]
    for name, read in META_FIELDS.items():
        columns[name] = _as_array([read(meta, site) for meta, site in metas])[inverse]
    columns["time_since_pass_start"] = view.source.records()["time"][view.positions]
    return columns


def _as_array(values: list[Any]) -> Array:
    # Mixed columns stay objects: numpy would turn a step of None into NaN, and the numbers beside it into floats.
    if values and all(type(value) is type(values[0]) for value in values) and isinstance(values[0], bool | int):
        return np.array(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def numpy_of(values: Tensor) -> Array:
    """A tensor as an array; bfloat16 and float8, which numpy lacks, become float32, which can hold all their values."""
    values = values.detach().cpu()
    is_unknown = values.dtype.is_floating_point and values.dtype not in (torch.float16, torch.float32, torch.float64)
    array: Array = (values.float() if is_unknown else values).numpy()
    return array


# What 32 bits hold exactly becomes numbers of 32 bits, which are measured in half of the time.
_FIT_32_BITS = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16, torch.float32}
)


def real_array(values: Tensor) -> Array:
    """A tensor as a contiguous array of float32 or float64, to be measured; of complex numbers the absolute values."""
    with outside_torch_modes():
        values = values.detach().cpu()
        if values.dtype == torch.complex32:
            values = values.to(torch.complex64)
        if values.is_complex():
            values = values.abs()
        fits = values.dtype in _FIT_32_BITS or (values.dtype.is_floating_point and values.dtype.itemsize < 4)
        array: Array = values.to(torch.float32 if fits else torch.float64).resolve_neg().contiguous().numpy()
        return array


def fill_missing(column: Array) -> Array:
    """A step column as a plain array, NaN where a step was marked without it; whole numbers become floats for that."""
    if not isinstance(column, np.ma.MaskedArray):
        return column
    data: Array = np.ma.getdata(column)
    mask = np.ma.getmaskarray(column)
    return np.where(mask, np.nan, data) if mask.any() else data
