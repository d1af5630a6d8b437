"""Several keys side by side: record by record, or step by step with the columns of the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec._errors import OptionError, RecordKeyError, StepError
from fastrec._optional import require
from fastrec.recording._arrays import filled, numpy_of, stacked
from fastrec.recording._rows import Rows, check_together
from fastrec.recording._source import PhaseSteps
from fastrec.recording._steps import Steps, fired_once
from fastrec.recording._view import View, metas_of_key

if TYPE_CHECKING:
    import tensordict
    import xarray


Array = npt.NDArray[Any]


class Aligned(msgspec.Struct, frozen=True):
    """Values whose first axis is the same, and what is known of each place on it.

    ``axis`` is "record" or "step"; ``envs`` is the size of the second axis where it counts environments, else 0.
    """

    axis: str
    values: dict[str, Tensor]
    index: dict[str, Array]
    columns: dict[str, Array]
    envs: int = 0

    def dims(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """The names of the axes of a value or column."""
        second = "env" if self.envs and shape[1:2] == (self.envs,) else f"{name}_1"
        return tuple([self.axis, second, *(f"{name}_{i}" for i in range(2, len(shape)))][: len(shape)])


def keys_of(view: View, keys: str | Iterable[str] | None) -> list[str]:
    """The keys that are meant: those given, or the sites of all values."""
    if isinstance(keys, str):
        return [keys]
    found = list(dict.fromkeys(keys)) if keys is not None else sites_with_values(view)
    if not found:
        raise RecordKeyError("there is nothing to read: the recording has no values, or no key was given")
    return found


def sites_with_values(view: View) -> list[str]:
    """The names of the sites of which a tensor was kept."""
    kept = np.unique(view.meta_numbers[view.rows >= 0]).tolist()
    return list(dict.fromkeys(view.site(meta).name for meta in view.metas if meta in kept))


def view_of(view: View, key: str, keys: str | Iterable[str] | None) -> View:
    """The records of a key; a name that was taken from the sites means that site."""
    return view.of_metas(metas_of_key(view, f"site:{key}" if keys is None else key))


def aligned(view: View, steps: Steps, keys: str | Iterable[str] | None, by: Literal["step"] | None) -> Aligned:
    """The values of keys side by side."""
    if by not in (None, "step"):
        raise OptionError(f"by={by!r}: there is by='step', or nothing")
    views = {key: view_of(view, key, keys) for key in keys_of(view, keys)}
    return _by_step(views, steps) if by == "step" else _by_record(views)


def _by_record(views: Mapping[str, View]) -> Aligned:
    check_together({key: Rows(view, key, None, None) for key, view in views.items()})
    first = next(iter(views.values()))
    infos = [first.info(position) for position in range(len(first.passes))]
    index = {
        "pass_index": first.passes["pass_index"][first.pass_at],
        "step": np.array([_number(first.step_of(info)) for info in infos], np.int64)[first.pass_at],
        "phase": np.array([first.catalog.phases[info.phase] for info in infos], str)[first.pass_at],
    }
    return Aligned("record", {key: stacked(view, key) for key, view in views.items()}, index, {})


def _by_step(views: Mapping[str, View], steps: Steps) -> Aligned:
    table = _only_table(steps, next(iter(views.values())))
    values = {key: stacked(fired_once(view, table, key), key) for key, view in views.items()}
    envs = {column.shape[1] for column in table.columns.values() if column.ndim > 1}
    columns = dict(table.columns)
    return Aligned("step", values, {"step": table.numbers}, columns, envs.pop() if len(envs) == 1 else 0)


def _only_table(steps: Steps, view: View) -> PhaseSteps:
    if not steps.tables:
        raise StepError("by='step' needs marked steps, and there are none; call rec.step(...) after env.step")
    if len(steps.tables) > 1:
        names = ", ".join(repr(view.catalog.phases[table.phase]) for table in steps.tables)
        raise StepError(f"there are steps in several phases: {names}; select(phase=...) one of them")
    return steps.tables[0]


def _number(step: int | None) -> int:
    return -1 if step is None else step


def to_xarray(found: Aligned) -> xarray.Dataset:
    """A data set of named axes."""
    package = require("xarray", extra="xarray", what="to_xarray()")
    arrays = {name: numpy_of(values) for name, values in found.values.items()}
    arrays.update({name: filled(column) for name, column in found.columns.items()})
    variables = {name: (found.dims(name, array.shape), array) for name, array in arrays.items()}
    coordinates = {name: (found.axis, array) for name, array in found.index.items()}
    dataset: xarray.Dataset = package.Dataset(variables, coords=coordinates)
    return dataset


def to_tensordict(found: Aligned) -> tensordict.TensorDict:
    """A tensordict whose batch is the first axis, and the environments where each value has them."""
    package = require("tensordict", extra="tensordict", what="to_tensordict()")
    tensors: dict[str, Any] = {name: values.detach() for name, values in found.values.items()}
    tensors.update({name: torch.from_numpy(filled(column)) for name, column in found.columns.items()})
    count = len(next(iter(tensors.values())))
    together = found.envs and all(tensor.shape[1:2] == (found.envs,) for tensor in tensors.values())
    aligned: tensordict.TensorDict = package.TensorDict(
        tensors, batch_size=[count, found.envs] if together else [count]
    )
    return aligned
