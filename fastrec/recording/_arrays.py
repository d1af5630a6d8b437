"""Many values as one tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec._errors import GradientError, OptionError, RaggedError, RecordKeyError
from fastrec._optional import require
from fastrec._torch.tensors import outside_torch_modes
from fastrec.events.capture import kept_dtype
from fastrec.events.context import torch_dtype
from fastrec.events.sites import RecordMeta, Site
from fastrec.recording._source import Part
from fastrec.recording._view import Integers, View, base_name

if TYPE_CHECKING:
    import pandas


PARTS: tuple[Part, ...] = ("activation", "transformed_activation", "gradient")


def stacked(view: View, key: str, part: Part | None = None) -> Tensor:
    """The values of all records of a view along the first axis, a view of their memory where they lie together."""
    part = _part_of(view, part)
    _check_sites(view, key)
    for what, of in (("shapes", _shape), ("dtypes", _dtype), ("devices", _device)):
        _check_alike(view, key, what, of)
    try:
        pieces = view.source.values(view.meta_numbers, view.rows, part)
    except KeyError as missing:
        raise _missing(view, key, part, missing.args[0]) from None
    shapes: Counter[Any] = Counter()
    for piece in pieces:
        shapes[tuple(piece.shape[1:])] += len(piece)
    if len(shapes) > 1:
        raise RaggedError(f"{part} of {key!r} has values of shapes {_counted(shapes)}; stack a selection of them")
    if len(pieces) == 1:
        return pieces[0]
    with outside_torch_modes():
        return torch.cat(list(pieces))


def checked_layouts(
    view: View, key: str, part: Part | None
) -> tuple[Part, Integers, Sequence[tuple[tuple[int, ...], torch.dtype]]]:
    """The part that is meant, the layouts that it has at one site, and which of them each record has."""
    part = _part_of(view, part)
    _check_sites(view, key)
    _check_alike(view, key, "devices", _device)
    try:
        return part, *view.source.layouts(view.rows, part)
    except KeyError as missing:
        raise _missing(view, key, part, missing.args[0]) from None


def by_pass(view: View, values: Tensor, key: str) -> Tensor:
    """Stacked values with an axis for the passes and one for the firings in each pass."""
    firings = np.unique(view.pass_at, return_counts=True)[1]
    if len(set(firings.tolist())) > 1:
        counts = Counter(firings.tolist())
        told = ", ".join(f"{n} in {passes} passes" for n, passes in counts.items())
        raise RaggedError(f"{key!r} fired a different number of times from pass to pass: {told}; use stack without by=")
    return values.reshape(len(firings), -1, *values.shape[1:])


def _part_of(view: View, part: Part | None) -> Part:
    if part is not None and part not in PARTS:
        raise OptionError(f"part={part!r}: choose one of {', '.join(map(repr, PARTS))}")
    whole = all(view.spec(meta).save_raw for meta in view.metas)
    return part or ("activation" if whole else "transformed_activation")


def _check_sites(view: View, key: str) -> None:
    sites = {view.site(meta) for meta in view.metas}
    if len({site.name for site in sites}) > 1:
        names = Counter(view.site(meta).name for meta in view.meta_numbers.tolist())
        leaves = len({base_name(site) for site in sites}) == 1
        what = "several leaves" if leaves else "values of several sites"
        raise RaggedError(f"{key!r} has {what}: {_counted(names)}; stack one of them")


def _check_alike(view: View, key: str, what: str, of: Callable[[View, int], Any]) -> None:
    found = {meta: of(view, meta) for meta in view.metas}
    if len(set(found.values())) > 1:
        counted = Counter(found[meta] for meta in view.meta_numbers.tolist())
        hint = f"recording.select(batch=...).stack({key!r})" if what == "shapes" else "a selection of them"
        raise RaggedError(f"{key!r} has values of {what} {_counted(counted)}; stack {hint}")


def _shape(view: View, meta: int) -> tuple[int, ...]:
    # A transform may well make one shape of many; what it made is looked at when it is read.
    return () if view.spec(meta).transform is not None else view.meta(meta).shape


def _dtype(view: View, meta: int) -> str:
    spec = view.spec(meta)
    return "" if spec.transform else str(kept_dtype(spec, torch_dtype(view.meta(meta).dtype)))


def _device(view: View, meta: int) -> str:
    device = view.spec(meta).device
    return view.meta(meta).device if device is None else str(torch.device(device))


def _missing(view: View, key: str, part: Part, position: int) -> Exception:
    meta = int(view.meta_numbers[position])
    label = view.meta(meta).label
    if part == "gradient" and view.spec(meta).save_gradient:
        return GradientError(f"no gradient has reached {label!r} yet (record {position} of {key!r}); call backward")
    return RecordKeyError(
        f"record {position} of {key!r} ({label!r}) was kept without its {part}: {view.spec(meta)}; "
        "its context is in recording[...]"
    )


def _counted(counts: Counter[Any]) -> str:
    more = f" and {len(counts) - 6} more" if len(counts) > 6 else ""
    return ", ".join(f"{what!r} ({n} records)" for what, n in list(counts.items())[:6]) + more


# Contexts also have fields that no cell of a table can hold: their stacks and what came before.
OF_META_AND_SITE: dict[str, Callable[[RecordMeta, Site], Any]] = {
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
    pandas = require("pandas", extra="pandas", what="to_pandas()")
    return pandas.DataFrame(columns_of(view))


def columns_of(view: View) -> dict[str, npt.NDArray[Any]]:
    """The fields of the contexts as arrays, without a context being made."""
    infos = [view.info(position) for position in range(len(view.passes))]
    of_pass: dict[str, list[Any]] = {
        "pass_index": [info.index for info in infos],
        "phase": [view.catalog.phases[info.phase] for info in infos],
        "step": [view.step_of(info) for info in infos],
        "entry": [view.catalog.entries[info.entry] for info in infos],
        "entry_pass": [info.entry_pass for info in infos],
        "sample_id": [info.sample_id for info in infos],
        "grad_enabled": [info.grad for info in infos],
    }
    columns = {name: _array(found)[view.pass_at] for name, found in of_pass.items()}
    numbers, inverse = np.unique(view.meta_numbers, return_inverse=True)
    facts = [(view.meta(number), view.site(number)) for number in numbers.tolist()]
    for name, read in OF_META_AND_SITE.items():
        columns[name] = _array([read(meta, site) for meta, site in facts])[inverse]
    columns["time_since_pass_start"] = view.source.records()["time"][view.at]
    return columns


def numpy_of(values: Tensor) -> npt.NDArray[Any]:
    """A tensor as an array; what numpy has no dtype for becomes float32, which holds its values exactly."""
    values = values.detach().cpu()
    narrow = values.dtype.is_floating_point and values.dtype not in (torch.float16, torch.float32, torch.float64)
    array: npt.NDArray[Any] = (values.float() if narrow else values).numpy()
    return array


def filled(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A step column as a plain array: missing numbers are NaN, and make floats of those that have none."""
    if not isinstance(column, np.ma.MaskedArray):
        return column
    data: npt.NDArray[Any] = np.ma.getdata(column)
    mask = np.ma.getmaskarray(column)
    return np.where(mask, np.nan, data) if mask.any() else data


def _array(values: list[Any]) -> npt.NDArray[Any]:
    if values and all(type(value) is type(values[0]) for value in values) and isinstance(values[0], bool | int):
        return np.array(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
