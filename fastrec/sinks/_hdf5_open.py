"""From a path to what can be read there: one recording, or several that were merged without being copied."""

from __future__ import annotations

import os

import msgspec

from fastrec._errors import DamagedFileError, RecordingNotFoundError
from fastrec.events.sites import Origin
from fastrec.sinks._hdf5_layout import MERGED, SOURCES
from fastrec.sinks._hdf5_paths import Paths
from fastrec.sinks._hdf5_read import segment_of
from fastrec.sinks._hdf5_source import HDF5Source
from fastrec.sinks._hdf5_trailer import opened
from fastrec.sinks._merged import MergedSource


class Named(msgspec.Struct, frozen=True):
    """A recording that another file shows: where it is, as seen from there, and what it was then."""

    path: str
    records: int
    origin: Origin


def open_source(path: str | os.PathLike[str]) -> HDF5Source | MergedSource:
    """What was recorded."""
    named = merged_of(path)
    if named is None:
        return HDF5Source(path)
    sources = [(_opened(os.fspath(path), one), one.origin) for one in named]
    return MergedSource(sources)


def merged_of(path: str | os.PathLike[str]) -> list[Named] | None:
    """The recordings that a file shows as one; None where it is a recording itself."""
    place = Paths(path).path
    if not os.path.exists(place) or segment_of(place) != MERGED:
        return None
    try:
        with opened(place) as file:
            found = msgspec.json.decode(file[SOURCES][:].tobytes(), type=list[Named])
    except (OSError, KeyError, RuntimeError, TypeError, AttributeError, ValueError, msgspec.DecodeError) as error:
        raise DamagedFileError(f"{place!r} does not tell what was merged: {error}") from error
    if not found:
        raise DamagedFileError(f"{place!r} shows nothing")
    return found


def source_path(path: str, named: Named) -> str:
    """Where a recording is that a file shows."""
    return os.path.normpath(os.path.join(os.path.dirname(path), named.path))


def _opened(path: str, named: Named) -> HDF5Source:
    place = source_path(path, named)
    try:
        found = HDF5Source(place)
    except RecordingNotFoundError as error:
        raise RecordingNotFoundError(f"{path!r} shows {place!r}, and there is no recording; put it back") from error
    if found.identity().run != named.origin.run:
        raise DamagedFileError(f"{path!r} shows {place!r}, and another recording took its place")
    if len(found.records()) < named.records:
        raise DamagedFileError(
            f"{path!r} shows {named.records} records of {place!r}, and there are {len(found.records())}"
        )
    return found
