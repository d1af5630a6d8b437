"""Where a session begins to write: in a new recording, in place of an old one, or behind one that it continues."""

from __future__ import annotations

import os
import uuid

import msgspec

from fastrec._errors import DamagedFileError, RecordingExistsError, RecordingNotFoundError
from fastrec.sinks._hdf5_layout import Identity
from fastrec.sinks._hdf5_options import HDF5Options
from fastrec.sinks._hdf5_paths import Paths, rank
from fastrec.sinks._hdf5_read import find_files


class Beginning(msgspec.Struct, frozen=True):
    """What the first file of a session is part of, and the descriptor that keeps others away from it."""

    identity: Identity
    lock: int


def begin(paths: Paths, options: HDF5Options) -> Beginning:
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
    if options.append:
        identity = _behind(paths, identity)
    else:
        for path in there:
            os.unlink(path)
    return Beginning(identity, paths.claim(identity.segment, locking=options.locking))


def _behind(paths: Paths, identity: Identity) -> Identity:
    """Make way for a session behind those that are there, without a change to what their files hold."""
    try:
        files = find_files(paths.path)
    except RecordingNotFoundError:  # at most the beginning of a file that nothing was written to
        for number in paths.segments():
            paths.forget(number)
        return identity
    last = files[-1].map.identity
    stray = [number for number in paths.segments() if number > last.segment]
    for number in stray:
        if os.path.exists(paths.sealed(number)):
            raise DamagedFileError(f"{paths.sealed(number)!r} is no part of the recording {paths.path!r}")
        paths.forget(number)
    if len(files) == 1 and files[0].path == paths.path:
        os.rename(paths.path, paths.sealed(last.segment))
    return msgspec.structs.replace(identity, run=last.run, session=last.session + 1, segment=last.segment + 1)
