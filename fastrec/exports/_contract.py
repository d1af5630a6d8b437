"""What an exporter is, and what every format needs: options, keys, reading in stretches, and writing all or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from fastrec._errors import OptionError, RecordingExistsError, RecordingFileError, did_you_mean
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


def columns_of_steps(recording: Recording) -> dict[str, Array]:
    """The columns of the steps, and the rank of each step where several processes recorded; missing numbers are NaN."""
    columns = {name: fill_missing(recording.steps[name]) for name in recording.steps}
    ranks = recording.steps.rank
    return columns if ranks is None else {"rank": ranks, **columns}


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
