"""What a format is, and what all of them need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from fastrec._errors import OptionError, RecordingExistsError, RecordingFileError, did_you_mean
from fastrec.recording._aligned import sites_with_values
from fastrec.recording._recording import Recording
from fastrec.recording._rows import By, Rows

Keys = str | Iterable[str] | Mapping[str, str]
"""One key, several, or the names that they get by key."""

STRETCH = 4 << 20
"""So many bytes are read and written at a time."""


Exporter = Callable[..., None]
"""A format: ``exporter(recording, path, *, keys=None, **options)``."""

Options = TypeVar("Options", bound=msgspec.Struct)


class RowOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a row is: a record, or a sample of a batch."""

    by: By = None


def read_options(format: str, options: type[Options], given: Mapping[str, Any]) -> Options:
    """The options of a format; an OptionError for one that it does not have."""
    known = options.__struct_fields__
    for name in given:
        if name not in known:
            raise OptionError(f"the format {format!r} has no option {name!r}; {did_you_mean(name, known)}")
    return options(**given)


def named(recording: Recording, keys: Keys | None) -> dict[str, str]:
    """The names that keys get in a file, and the keys."""
    if keys is None:
        return {site: f"site:{site}" for site in sites_with_values(recording._view)}
    if isinstance(keys, Mapping):
        names = {name: key for key, name in keys.items()}
        if len(names) < len(keys):
            raise OptionError(f"keys={dict(keys)!r}: two keys have the same name")
        return names
    return {key: key for key in ([keys] if isinstance(keys, str) else keys)}


def rows_of(recording: Recording, keys: Keys | None, by: By) -> dict[str, Rows]:
    """The rows of each key by name."""
    return {name: recording.rows(key, by) for name, key in named(recording, keys).items()}


def plain(names: Iterable[str]) -> dict[str, str]:
    """Names without slashes, which HDF5 would take for groups, all different."""
    found: dict[str, str] = {}
    for name in names:
        made, number = name.replace("/", "."), 2
        while made in found.values():
            made, number = f"{name.replace('/', '.')}#{number}", number + 1
        found[name] = made
    return found


def stretches(rows: Rows) -> Iterator[slice]:
    """Where to divide rows to read them bit by bit."""
    edges = rows.edges(STRETCH).tolist()
    return (slice(a, b) for a, b in zip(edges, edges[1:], strict=False))


@contextmanager
def made_whole(path: str | os.PathLike[str], *suffixes: str) -> Iterator[str]:
    """Where to write what comes to lie at a path once it is all there."""
    target = os.fspath(path)
    if suffixes and not target.endswith(suffixes):
        raise OptionError(f"the path {target!r} has to end in {' or '.join(suffixes)}")
    if os.path.lexists(target):
        raise RecordingExistsError(f"{target!r} exists; give another path")
    part = target.rstrip(os.sep) + ".part"
    try:
        yield part
        os.rename(part, target)
    except OSError as error:
        if isinstance(error, RecordingFileError):
            raise
        raise RecordingFileError(f"{target!r} can't be written: {error.strerror or error}") from error
    finally:
        if os.path.isdir(part):
            shutil.rmtree(part)
        elif os.path.exists(part):
            os.unlink(part)
