"""Where a session begins to write: in a new recording, in place of an old one, or after one that it continues.

    claim = claim_first_segment(paths, options, catalog)    # locked until claim.descriptor is closed

Existing files are checked before anything is changed. A recording that somebody else is writing is neither removed nor
continued. The files of one that is continued stay as they are, except for a name: ``run.h5``, which will show all
sessions, becomes ``run.00000.h5``.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from fastrec._errors import (
    DamagedFileError,
    FastrecError,
    FastrecWarning,
    OptionError,
    RecordingExistsError,
    RecordingFileError,
    RecordingNotFoundError,
)
from fastrec.events.sites import Catalog
from fastrec.sinks.hdf5.catalog_log import Log, SessionOffset
from fastrec.sinks.hdf5.layout import MERGED, Identity
from fastrec.sinks.hdf5.options import HDF5Options
from fastrec.sinks.hdf5.paths import Paths, os_message, rename_to_free
from fastrec.sinks.hdf5.process import current_process
from fastrec.sinks.hdf5.reader import ReadFile, find_files, segment_of

Shapes = Mapping[tuple[str, str], tuple[int, ...]]
"""The shapes of step columns, by the names of the phase and the column."""


class Claim(msgspec.Struct, frozen=True):
    """The first segment of a session: what it is part of, and the descriptor that keeps others away from it.

    ``shapes`` are those that step columns have in the sessions before.
    """

    identity: Identity
    descriptor: int
    shapes: Shapes


def claim_first_segment(paths: Paths, options: HDF5Options, catalog: Catalog) -> Claim:
    """Make way for a session, and claim its first file."""
    existing = paths.files()
    if existing and not (options.overwrite or options.append):
        raise RecordingExistsError(
            f"{existing[0]!r} exists; give another path, or HDF5Sink({paths.path!r}, overwrite=True) to remove it or "
            "append=True to continue it"
        )
    folder = next((path for path in existing if os.path.isdir(path)), None)
    if folder is not None:
        raise RecordingExistsError(f"{folder!r} is a folder; give the path of a file")
    locked = paths.locked_file()
    if locked is not None:
        raise RecordingExistsError(f"{locked!r} is being written by another process, or open in another program")
    identity = Identity(uuid.uuid4().hex, 0, 0, current_process().rank, os.getpid())
    shapes: Shapes = {}
    try:
        if options.append:
            identity, shapes = _continue(paths, identity, catalog)
        else:
            for path in existing:
                os.unlink(path)
    except OSError as error:
        if isinstance(error, FastrecError):
            raise
        raise RecordingFileError(f"{paths.path!r} can't be replaced or continued: {os_message(error)}") from error
    return Claim(identity, paths.claim(identity.segment, locking=options.locking), shapes)


def _continue(paths: Paths, identity: Identity, catalog: Catalog) -> tuple[Identity, Shapes]:
    """Make way for a session after those that exist; their files keep what they hold."""
    if os.path.exists(paths.path) and segment_of(paths.path) == MERGED:
        raise _merged_error(paths.path)
    try:
        files = find_files(paths.path)
    except RecordingNotFoundError:  # at most the beginning of a file to which nothing was written
        for number in paths.segments():
            paths.remove_in_progress(number)
        return identity, {}
    shapes = _earlier_shapes(paths.path, files, catalog.header)
    last = files[-1].index.identity
    for number in paths.segments():
        if number > last.segment:
            if os.path.exists(paths.finalized(number)):
                raise DamagedFileError(f"{paths.finalized(number)!r} is not part of the recording {paths.path!r}")
            paths.remove_in_progress(number)
    left = [file.path for file in files if file.in_progress]
    if left:
        warnings.warn(
            f"{left[0]!r} was left by a process that was killed; fastrec reads it as it is, but for other tools "
            f"{paths.path!r} appears only when fastrec.recover({paths.path!r}) has finished it, after this session",
            FastrecWarning,
            stacklevel=2,
        )
    if len(files) == 1 and files[0].path == paths.path:
        rename_to_free(paths.path, paths.finalized(last.segment))
    identity = msgspec.structs.replace(identity, run=last.run, session=last.session + 1, segment=last.segment + 1)
    return identity, shapes


def _earlier_shapes(path: str, files: Sequence[ReadFile], header: Mapping[str, Any]) -> Shapes:
    """The shapes of step columns so far; an OptionError where steps of another session would not mean the same."""
    log, session = Log(), files[0].index.identity.session
    for file in files:
        if file.index.identity.session != session:
            session = file.index.identity.session
            log.begin_session(SessionOffset())
        file.log(log)
        log.resolve()
    if log.catalog.origins:
        raise _merged_error(path)
    autoreset, earlier_autoreset = header.get("autoreset"), log.catalog.header.get("autoreset")
    if (autoreset == "next_step") != (earlier_autoreset == "next_step"):
        raise OptionError(
            f"{path!r} was recorded with autoreset={earlier_autoreset!r} and this session has autoreset={autoreset!r}, "
            "so its steps would not mean the same; give another path"
        )
    infos = [info for info in log.data.values() if info.part == "step"]
    return {(log.catalog.phases[info.phase], name): tuple(shape) for info in infos for name, _, shape in info.columns}


def _merged_error(path: str) -> OptionError:
    return OptionError(f"{path!r} was merged of several recordings, and only one can be continued; give another path")
