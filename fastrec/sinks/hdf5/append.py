"""Where a session begins to write: in a new recording, in place of an old one, or behind one that it continues."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from fastrec._errors import (
    DamagedFileError,
    FastrecError,
    OptionError,
    RecordingExistsError,
    RecordingFileError,
    RecordingNotFoundError,
)
from fastrec.events.sites import Catalog
from fastrec.sinks.hdf5.catalog_log import Log, SessionOffset
from fastrec.sinks.hdf5.layout import MERGED, Identity
from fastrec.sinks.hdf5.options import HDF5Options
from fastrec.sinks.hdf5.paths import Paths, os_message, rank
from fastrec.sinks.hdf5.reader import ReadFile, find_files, segment_of

Shapes = Mapping[tuple[str, str], tuple[int, ...]]


class Beginning(msgspec.Struct, frozen=True):
    """What the first file of a session is part of, and the descriptor that keeps others away from it.

    ``shapes`` are those that step columns have in the sessions before, by name of the phase and the column.
    """

    identity: Identity
    lock: int
    shapes: Shapes


def begin(paths: Paths, options: HDF5Options, catalog: Catalog) -> Beginning:
    """Claim the first file of a session."""
    there = paths.files()
    if there and not (options.overwrite or options.append):
        raise RecordingExistsError(
            f"{there[0]!r} exists; give another path, or HDF5Sink({paths.path!r}, overwrite=True) to remove it or "
            "append=True to continue it"
        )
    folder = next((path for path in there if os.path.isdir(path)), None)
    if folder is not None:
        raise RecordingExistsError(f"{folder!r} is a folder; give the path of a file")
    writer = paths.writer()
    if writer is not None:
        raise RecordingExistsError(f"{writer!r} is being written by another process, or open in another program")
    identity = Identity(uuid.uuid4().hex, 0, 0, rank(), os.getpid())
    shapes: Shapes = {}
    try:
        if options.append:
            identity, shapes = _behind(paths, identity, catalog)
        else:
            for path in there:
                os.unlink(path)
    except OSError as error:
        if isinstance(error, FastrecError):
            raise
        raise RecordingFileError(f"{paths.path!r} can't be replaced or continued: {os_message(error)}") from error
    return Beginning(identity, paths.claim(identity.segment, locking=options.locking), shapes)


def _behind(paths: Paths, identity: Identity, catalog: Catalog) -> tuple[Identity, Shapes]:
    """Make way for a session behind those that are there, without a change to what their files hold."""
    if os.path.exists(paths.path) and segment_of(paths.path) == MERGED:
        raise _merged(paths.path)
    try:
        files = find_files(paths.path)
    except RecordingNotFoundError:  # at most the beginning of a file that nothing was written to
        for number in paths.segments():
            paths.forget(number)
        return identity, {}
    shapes = _earlier_shapes(paths.path, files, catalog.header)
    last = files[-1].map.identity
    stray = [number for number in paths.segments() if number > last.segment]
    for number in stray:
        if os.path.exists(paths.sealed(number)):
            raise DamagedFileError(f"{paths.sealed(number)!r} is no part of the recording {paths.path!r}")
        paths.forget(number)
    if len(files) == 1 and files[0].path == paths.path:
        os.rename(paths.path, paths.sealed(last.segment))
    identity = msgspec.structs.replace(identity, run=last.run, session=last.session + 1, segment=last.segment + 1)
    return identity, shapes


def _earlier_shapes(path: str, files: Sequence[ReadFile], header: Mapping[str, Any]) -> Shapes:
    """What step columns look like so far; an OptionError where steps of another session would not mean the same."""
    log = Log()
    for before, file in zip([files[0], *files], files, strict=False):
        if file.map.identity.session != before.map.identity.session:
            log.begin_session(SessionOffset())
        file.log(log)
        log.settle()
    if log.catalog.origins:
        raise _merged(path)
    here, there = header.get("autoreset"), log.catalog.header.get("autoreset")
    if (here == "next_step") != (there == "next_step"):
        raise OptionError(
            f"{path!r} was recorded with autoreset={there!r} and this session has autoreset={here!r}, so its steps "
            "would not mean the same; give another path"
        )
    infos = [info for info in log.data.values() if info.part == "step"]
    return {(log.catalog.phases[info.phase], name): tuple(shape) for info in infos for name, _, shape in info.columns}


def _merged(path: str) -> OptionError:
    return OptionError(f"{path!r} was merged of several recordings, and only one can be continued; give another path")
