"""What an exporter is, and what every format needs: options, keys, reading in stretches, and writing all or nothing."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import numpy as np

from fastrec._errors import OptionError, RecordingExistsError, RecordingFileError, StepError, did_you_mean
from fastrec.recording._aligned import sites_with_values
from fastrec.recording._arrays import fill_missing
from fastrec.recording._recording import Recording
from fastrec.recording._rows import By, Rows
from fastrec.recording._source import Array

Keys = str | Iterable[str] | Mapping[str, str]
"""One key, several, or a mapping from keys to the names that they get in the file."""

Exporter = Callable[..., None]
"""A format: ``exporter(recording, path, *, keys=None, **options)``."""

STRETCH_BYTES = 4 << 20
"""About how many bytes are read and written at a time."""


class RowOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a row is: a record, or a sample of a batch."""

    by: By = None


class RowAndStepOptions(RowOptions, frozen=True, kw_only=True):
    """What a row is, and whether the columns of the steps are written too."""

    steps: bool = True


Options = TypeVar("Options", bound=msgspec.Struct)


def read_options(format: str, struct: type[Options], options: Mapping[str, Any]) -> Options:
    """The options of a format as its struct; OptionError for one that the format does not have."""
    allowed = struct.__struct_fields__
    for name in options:
        if name not in allowed:
            raise OptionError(f"the format {format!r} has no option {name!r}; {did_you_mean(name, allowed)}")
    return struct(**options)


def keys_by_name(recording: Recording, keys: Keys | None) -> dict[str, str]:
    """The name that each key gets in the file, and the key; by default all sites under their own names."""
    if keys is None:
        return {site: f"site:{site}" for site in sites_with_values(recording._view)}
    if isinstance(keys, Mapping):
        by_name = {name: key for key, name in keys.items()}
        if len(by_name) < len(keys):
            raise OptionError(f"keys={dict(keys)!r}: two keys have the same name")
        return by_name
    return {key: key for key in ([keys] if isinstance(keys, str) else keys)}


def rows_of(recording: Recording, keys: Keys | None, by: By) -> dict[str, Rows]:
    """The rows of each key, by the name that it gets."""
    return {name: recording.rows(key, by) for name, key in keys_by_name(recording, keys).items()}


def columns_of_steps(recording: Recording, rows_by_name: Mapping[str, Rows]) -> dict[str, Array]:
    """The columns of the steps, and the rank of each step where several processes recorded; missing numbers are NaN.

    Raises StepError where a key has not one firing in each step, so that its rows are not those of the columns.
    """
    if not len(recording.steps):
        return {}
    for name, rows in rows_by_name.items():
        _check_steps(name, rows, recording)
    columns = {name: fill_missing(recording.steps[name]) for name in recording.steps}
    ranks = recording.steps.rank
    return columns if ranks is None else {"rank": ranks, **columns}


def _check_steps(name: str, rows: Rows, recording: Recording) -> None:
    labels, steps = rows.labels, recording.steps
    _, first = np.unique(labels.pass_index, return_index=True)
    is_record = np.ones(len(labels.row), np.bool_)
    if rows.by == "sample":
        is_record[:] = False
        is_record[first] = True
    ranks = None if steps.rank is None else steps.rank.tolist()
    of_rows = zip(
        labels.rank[is_record].tolist(), labels.phase[is_record], labels.step[is_record].tolist(), strict=True
    )
    of_steps = zip(ranks or [-1] * len(steps), steps.phase, steps.step.tolist(), strict=True)
    counts, marked = Counter(of_rows), Counter(of_steps)
    if counts == marked:
        return
    extra = next(iter((counts - marked) or (marked - counts)))
    rank, phase, step = extra
    where = f" of phase {phase!r}" if phase else ""
    n_firings = counts[extra]
    raise StepError(
        f"{name!r} has {is_record.sum()} records, and there are {len(steps)} steps, so they don't stand side by side: "
        + (
            f"it fired {n_firings} times in step {step}{where}"
            if marked[extra]
            else f"{n_firings} of them are of no step{where}"
        )
        + ". Export recording.select(...) of what belongs together (steps=range(...), entry=, batch=, phase=), or "
        "steps=False, the values alone"
    )


def row_slices(rows: Rows) -> Iterator[slice]:
    """Slices that divide rows into stretches, so that the whole need not be in memory."""
    edges = rows.edges(STRETCH_BYTES).tolist()
    return (slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False))


@contextmanager
def atomic_output(path: str | os.PathLike[str], *suffixes: str) -> Iterator[str]:
    """Where to write a file or folder; it is renamed to the path once it is complete, and removed if that fails."""
    target = os.fspath(path)
    if suffixes and not target.endswith(suffixes):
        raise OptionError(f"the path {target!r} has to end in {' or '.join(suffixes)}")
    if os.path.lexists(target):
        raise RecordingExistsError(f"{target!r} exists; give another path")
    # In the same folder, because a rename is only atomic within one file system.
    temporary = target.rstrip(os.sep) + ".part"
    try:
        yield temporary
        os.rename(temporary, target)
    except OSError as error:
        if isinstance(error, RecordingFileError):  # an OSError too, which reading the recording raised
            raise
        raise RecordingFileError(f"{target!r} can't be written: {error.strerror or error}") from error
    finally:
        if os.path.isdir(temporary):
            shutil.rmtree(temporary)
        elif os.path.exists(temporary):
            os.unlink(temporary)
