"""The values of a key with the marked steps as first axis, and the processes as second one where several recorded.

    recording.stack("tanh_1", by="step")              # [steps, ...], of one process
    folder.stack("tanh_1", by="step")                 # [steps, processes, ...]
    folder.stack("tanh_1", by="step", fill=math.nan)  # also where a process marked fewer steps than another

Each process counts its steps by itself. Ranks that run in lockstep mark the same ones, so their values stand side by
side; a process that was killed marked fewer, and nothing may stand in its place unless the user says what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from fastrec._errors import RaggedError, StepError
from fastrec._torch.tensors import outside_torch_modes
from fastrec.events.sites import Catalog
from fastrec.recording._source import Integers, Part, PhaseSteps
from fastrec.recording._steps import Firings, StepRecords, Steps
from fastrec.recording._view import View


class _StepPlace(msgspec.Struct):
    """A place on the axis of processes: the attempts of one rank, or one process that has none."""

    name: str
    numbers: Integers
    values: Tensor


def stack_by_step(view: View, steps: Steps, key: str, part: Part | None, firings: Firings) -> Tensor:
    """The values as [steps, ...], and as [steps, processes, ...] where several processes marked steps."""
    tables = tables_of_one_phase(steps, view)
    if len(tables) == 1:
        return firings.stack(records_of_table(view, tables[0]), key, part)
    places = [
        _place(name, [(table.numbers, firings.stack(records_of_table(view, table), key, part)) for table in of_place])
        for name, of_place in _tables_by_place(tables, view.catalog).items()
    ]
    if len(places) == 1:
        return places[0].values
    _check_layouts(key, [place.values for place in places])
    numbers = np.unique(np.concatenate([place.numbers for place in places]))
    lacking = [place for place in places if len(place.numbers) < len(numbers)]
    if lacking and firings.fill is None:
        raise StepError(_unaligned_message(key, places, lacking[0], numbers))
    with outside_torch_modes():
        return torch.stack([_filled(place, numbers, firings.fill) for place in places], 1)


def tables_of_one_phase(steps: Steps, view: View) -> Sequence[PhaseSteps]:
    """The steps of the one phase that there is, one table for each process that marked some."""
    if not steps.tables:
        raise StepError("by='step' needs marked steps, and there are none; call rec.step(...) after env.step")
    names = dict.fromkeys(view.catalog.phases[table.phase] for table in steps.tables)
    if len(names) > 1:
        listed = ", ".join(map(repr, names))
        raise StepError(f"there are steps in several phases: {listed}; select(phase=...) one of them")
    return steps.tables


def records_of_table(view: View, table: PhaseSteps) -> StepRecords:
    """The records of the steps of one table; where several processes recorded, without a look at the others'."""
    origin = view.catalog.origin_of_phase(table.phase)
    if origin is not None:
        view = view.of_pass_ranges([(origin.first_pass, origin.first_pass + origin.passes)])
    return StepRecords.of(view, table)


def joined(key: str, parts: Sequence[Tensor]) -> Tensor:
    """The values of several processes one after another."""
    _check_layouts(key, parts)
    return torch.cat(list(parts))


def _check_layouts(key: str, parts: Sequence[Tensor]) -> None:
    layouts = Counter((tuple(part.shape[1:]), part.dtype) for part in parts)
    if len(layouts) > 1:
        raise RaggedError(
            f"{key!r} has values of other shapes or dtypes in other processes: {', '.join(map(str, layouts))}; "
            "recording.select(rank=...) those that are alike"
        )


def _tables_by_place(tables: Sequence[PhaseSteps], catalog: Catalog) -> Mapping[str, list[PhaseSteps]]:
    """The tables of each place, by its name, in the order of the processes."""
    by_place: dict[tuple[Any, ...], list[PhaseSteps]] = {}
    for table in tables:
        origin = catalog.origin_of_phase(table.phase)
        process = None if origin is None else origin.process
        if origin is None or process is None:
            place: tuple[Any, ...] = ("", table.phase)
        elif origin.rank < 0:
            place = (str(process), origin.first_pass)
        else:
            place = (f"rank {origin.rank}", process.role, process.worker)
        by_place.setdefault(place, []).append(table)
    repeated = Counter(name for name, *_ in by_place)
    return {
        place[0] if repeated[place[0]] == 1 else " ".join(map(str, place)): of_place
        for place, of_place in by_place.items()
    }


def _place(name: str, attempts: Sequence[tuple[Integers, Tensor]]) -> _StepPlace:
    """The steps of all attempts; a StepError where two of them marked the same one."""
    numbers = np.concatenate([of_attempt for of_attempt, _ in attempts])
    if len(attempts) == 1:
        return _StepPlace(name, numbers, attempts[0][1])
    distinct, counts = np.unique(numbers, return_counts=True)
    if len(distinct) < len(numbers):
        raise StepError(
            f"{name} was recorded {len(attempts)} times, and step {distinct[counts > 1][0]} was marked more than once; "
            "load a list of the files that go together, or read them one after another with to_xarray(by='step')"
        )
    order = np.argsort(numbers)
    with outside_torch_modes():
        return _StepPlace(name, distinct, torch.cat([values for _, values in attempts])[torch.from_numpy(order)])


def _filled(place: _StepPlace, numbers: Integers, fill: float | None) -> Tensor:
    if len(place.numbers) == len(numbers) or fill is None:
        return place.values
    values = place.values
    if not (values.is_floating_point() or values.is_complex() or float(fill).is_integer()):
        raise StepError(f"fill={fill!r} can't stand among values of {values.dtype}; give a whole number")
    filled = values.new_full((len(numbers), *values.shape[1:]), fill)
    filled[torch.from_numpy(np.searchsorted(numbers, place.numbers))] = values
    return filled


def _unaligned_message(key: str, places: Sequence[_StepPlace], lacking: _StepPlace, numbers: Integers) -> str:
    shared = set(places[0].numbers.tolist()).intersection(*(place.numbers.tolist() for place in places[1:]))
    step = np.setdiff1d(numbers, lacking.numbers)[0]
    some = f"select(steps=range({max(shared) + 1})) for those that all have, " if _is_prefix(shared) else ""
    return (
        f"{key!r} can't have the processes as an axis, because they marked other steps: {lacking.name} has no step "
        f"{step}; give fill=, such as float('nan'), for steps that one lacks, {some}"
        "or to_xarray(by='step') for a row per rank and step"
    )


def _is_prefix(steps: set[int]) -> bool:
    return bool(steps) and steps == set(range(max(steps) + 1))
