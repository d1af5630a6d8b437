"""A recording as a table for pandas, and its values for numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec._errors import MissingExtraError
from fastrec._recording_view import View
from fastrec.events.sites import Site, Variant

if TYPE_CHECKING:
    import pandas

# Contexts also have fields that no cell of a table can hold: their stacks and what came before.
OF_VARIANT: dict[str, Callable[[Variant, Site], Any]] = {
    "label": lambda v, s: v.label,
    "site": lambda v, s: s.name,
    "kind": lambda v, s: s.kind,
    "layer_type": lambda v, s: s.layer_type,
    "layer_type_num": lambda v, s: v.number,
    "func_name": lambda v, s: s.func_name,
    "module_address": lambda v, s: s.module_address,
    "module_type": lambda v, s: s.module_type,
    "module_pass_index": lambda v, s: v.module_pass,
    "event_index": lambda v, s: v.event_index,
    "op_index": lambda v, s: v.op_index,
    "output_index": lambda v, s: s.output_index,
    "input_output_address": lambda v, s: s.output_address,
    "tensor_shape": lambda v, s: v.shape,
    "tensor_dtype": lambda v, s: v.dtype,
    "tensor_device": lambda v, s: v.device,
    "tensor_requires_grad": lambda v, s: v.requires_grad,
    "is_bottom_level_func": lambda v, s: s.is_bottom_level_func,
}


def frame_of(view: View) -> pandas.DataFrame:
    """One row per record, in order, with the fields of its context."""
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("to_pandas() needs pandas; install it with pip install 'fastrec[pandas]'") from error
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
    kinds, inverse = np.unique(view.variants, return_inverse=True)
    variants = [(view.variant(kind), view.site(kind)) for kind in kinds.tolist()]
    for name, read in OF_VARIANT.items():
        columns[name] = _array([read(variant, site) for variant, site in variants])[inverse]
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
