"""Several keys side by side in one container: record by record, or step by step with the columns of the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from fastrec._errors import OptionError, RecordKeyError, StepError
from fastrec._optional import require
from fastrec._torch.tensors import outside_torch_modes
from fastrec.recording._arrays import fill_missing, numpy_of, stack_records
from fastrec.recording._rows import Rows, check_same_passes
from fastrec.recording._source import Array, PhaseSteps
from fastrec.recording._step_axis import joined, records_of_table, tables_of_one_phase
from fastrec.recording._steps import Firings, Steps, n_environments
from fastrec.recording._view import View, keys_of, metas_of_key, rank_of_passes

if TYPE_CHECKING:
    import tensordict
    import xarray


class Aligned(msgspec.Struct, frozen=True):
    """Tensors that share their first axis, with the arrays that number it.

    ``axis`` is "record" or "step"; ``coords`` and ``columns`` have one value per place on it. ``n_envs`` is the size of
    the second axis where that counts environments, else 0.
    """

    axis: str
    values: dict[str, Tensor]
    coords: dict[str, Array]
    columns: dict[str, Array]
    n_envs: int = 0

    def dims(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """The names of the axes of a value or column."""
        second = "env" if self.n_envs and shape[1:2] == (self.n_envs,) else f"{name}_1"
        return tuple([self.axis, second, *(f"{name}_{i}" for i in range(2, len(shape)))][: len(shape)])


def align(
    view: View, steps: Steps, keys: str | Iterable[str] | None, by: Literal["step"] | None, firings: Firings
) -> Aligned:
    """The values of keys side by side."""
    if by not in (None, "step"):
        raise OptionError(f"by={by!r}: give by='step', or leave it out for one row per record")
    views = views_of_keys(view, keys)
    return _align_by_step(views, steps, firings) if by == "step" else _align_by_record(views)


def views_of_keys(view: View, keys: str | Iterable[str] | None) -> dict[str, View]:
    """The records of each key; without keys, those of each site that has values."""
    if keys is None:
        metas = {site: metas_of_key(view, f"site:{site}") for site in sites_with_values(view)}
    else:
        metas = {key: metas_of_key(view, key) for key in keys_of(view, [keys] if isinstance(keys, str) else keys)}
    if not metas:
        raise RecordKeyError("there is nothing to read: the recording has no values, or no key was given")
    return {key: view.of_metas(numbers) for key, numbers in metas.items()}


def sites_with_values(view: View) -> list[str]:
    """The names of the sites at which a tensor was kept."""
    with_values = set(np.unique(view.meta_numbers[view.rows >= 0]).tolist())
    return list(dict.fromkeys(view.site(meta).name for meta in view.metas if meta in with_values))


def _align_by_record(views: Mapping[str, View]) -> Aligned:
    check_same_passes({key: Rows(view, key, None, None) for key, view in views.items()})
    view = next(iter(views.values()))
    infos = [view.info(position) for position in range(len(view.passes))]
    steps = [-1 if (step := view.step_of(info)) is None else step for info in infos]
    phases = [view.catalog.phases[info.phase] for info in infos]
    coords = {
        "pass_index": view.passes["pass_index"][view.pass_positions],
        "step": np.array(steps, np.int64)[view.pass_positions],
        "phase": np.array(phases, str)[view.pass_positions],
    }
    ranks = rank_of_passes(view)
    if ranks is not None:
        coords["rank"] = ranks[view.pass_positions]
    return Aligned("record", {key: stack_records(view, key) for key, view in views.items()}, coords, {})


def _align_by_step(views: Mapping[str, View], steps: Steps, firings: Firings) -> Aligned:
    tables = tables_of_one_phase(steps, next(iter(views.values())))
    if len(tables) == 1:
        return _align_table(views, tables[0], firings)
    catalog = next(iter(views.values())).catalog
    rank_of_phase = {phase: origin.rank for origin in catalog.origins for phase in origin.phases}
    parts = [_align_table(views, table, firings) for table in tables]
    _check_columns(parts)
    ranks = [np.full(len(table.numbers), rank_of_phase[table.phase], np.int64) for table in tables]
    with outside_torch_modes():
        values = {key: joined(key, [part.values[key] for part in parts]) for key in views}
    coords = {"step": np.concatenate([table.numbers for table in tables]), "rank": np.concatenate(ranks)}
    # Filled first: where a step of one process has no value, the column is of floats in all of them.
    columns = {name: np.concatenate([fill_missing(part.columns[name]) for part in parts]) for name in parts[0].columns}
    return Aligned("step", values, coords, columns, parts[0].n_envs)


def _align_table(views: Mapping[str, View], table: PhaseSteps, firings: Firings) -> Aligned:
    values = {key: firings.stack(records_of_table(view, table), key) for key, view in views.items()}
    return Aligned("step", values, {"step": table.numbers}, dict(table.columns), n_environments(table))


def _check_columns(parts: Sequence[Aligned]) -> None:
    kinds = [({name: column.shape[1:] for name, column in part.columns.items()}, part.n_envs) for part in parts]
    different = next((kind for kind in kinds if kind != kinds[0]), None)
    if different is not None:
        raise StepError(
            f"the steps of one process have the columns {kinds[0][0]}, and those of another {different[0]}; "
            "recording.select(rank=...) those that are alike"
        )


def to_xarray(aligned: Aligned) -> xarray.Dataset:
    """A data set with named axes."""
    package = require("xarray", extra="xarray", what="to_xarray()")
    arrays = {name: numpy_of(values) for name, values in aligned.values.items()}
    arrays.update({name: fill_missing(column) for name, column in aligned.columns.items()})
    variables = {name: (aligned.dims(name, array.shape), array) for name, array in arrays.items()}
    coords = {name: (aligned.axis, array) for name, array in aligned.coords.items()}
    dataset: xarray.Dataset = package.Dataset(variables, coords=coords)
    return dataset


def to_tensordict(aligned: Aligned) -> tensordict.TensorDict:
    """A tensordict whose batch is the first axis, and the environments too where every value has them."""
    package = require("tensordict", extra="tensordict", what="to_tensordict()")
    tensors: dict[str, Any] = {name: values.detach() for name, values in aligned.values.items()}
    tensors.update({name: torch.from_numpy(fill_missing(column)) for name, column in aligned.columns.items()})
    batch_size = [len(next(iter(tensors.values())))]
    if aligned.n_envs and all(tensor.shape[1:2] == (aligned.n_envs,) for tensor in tensors.values()):
        batch_size.append(aligned.n_envs)
    container: tensordict.TensorDict = package.TensorDict(tensors, batch_size=batch_size)
    return container
