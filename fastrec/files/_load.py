"""Loading recordings from files, and finishing those of killed processes."""

from __future__ import annotations

import warnings
from os import PathLike, fspath, makedirs
from os.path import basename, join
from typing import Literal, overload

from fastrec._errors import FastrecError, FastrecWarning, OptionError
from fastrec.recording._recording import Recording
from fastrec.sinks.hdf5.folder import AnyPath, is_one_recording, open_any, recordings_of
from fastrec.sinks.hdf5.live import LiveRecording
from fastrec.sinks.hdf5.live_folder import LiveFolder
from fastrec.sinks.hdf5.recover import Recovered, RecoverOptions, recover_files

MAX_LISTED = 8
"""How many files of a folder that can't be read are named in one warning."""


@overload
def load(path: AnyPath, *, live: Literal[True], verify: bool = False, salvage: bool = False) -> LiveRecording: ...


@overload
def load(path: AnyPath, *, live: bool = False, verify: bool = False, salvage: bool = False) -> Recording: ...


def load(path: AnyPath, *, live: bool = False, verify: bool = False, salvage: bool = False) -> Recording:
    """Read a recording from its file, finished or not: everything that was flushed so far.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
    >>> with fastrec.Recorder(model, keep_op="tanh", sink="run.h5") as rec:
    ...     for _ in range(3):
    ...         out = model(torch.ones(5, 4))
    >>> fastrec.load("run.h5", verify=True).stack("tanh_1").shape
    torch.Size([3, 5, 8])

    Arguments:
        path: the path that the recorder was given, even if the recording has several files, is still being written, or
            was left by a process that was killed. A folder, a glob such as "run/main.*.h5", or a list of paths is read
            as one: the files of ranks in their order, then those of processes without one by role and worker. A file
            that can't be read is named in a warning, as are ranks without a file, and the others are read.
        live: follow a recording that is being written: the result also has ``refresh()``, which takes in what was
            flushed since, ``follow()``, which waits for it, and ``state``.
        verify: compare the tables with their checksums now, and each block of values when the first of it is read;
            DamagedFileError where they are not what was written.
        salvage: read what is left of a damaged recording; a warning says what is lost, and which values may be wrong.

    Values are read when they are asked for, onto the CPU. Raises RecordingNotFoundError where there is no recording,
    DamagedFileError where a file is not a recording or not all of one. A recording that was not finished and is damaged
    is read as far as it is whole, with a warning.
    """
    if live:
        if verify or salvage:
            raise OptionError("load(live=True) can't verify or salvage a recording that grows; load it without live=")
        return LiveRecording(path) if is_one_recording(path) else LiveFolder(path)
    source = open_any(path, verify=verify, salvage=salvage)
    losses = source.losses()
    if losses:
        listed = losses[:1] if is_one_recording(path) else losses[:MAX_LISTED]
        n_more = len(losses) - len(listed)
        more = f", and {n_more} more; fastrec.files.verify lists all" if n_more else ""
        warnings.warn(f"{'; '.join(listed)}{more}", FastrecWarning, stacklevel=2)
    return Recording(source)


def recover(
    path: str | PathLike[str],
    to: str | PathLike[str] | None = None,
    *,
    force: bool = False,
    discard: bool = False,
) -> Recovered:
    """Finish the file of a recording whose process was killed, and say what is not in it.

    >>> import torch, fastrec
    >>> model = torch.nn.Linear(4, 2)
    >>> with fastrec.Recorder(model, keep_op="linear", sink="linear.h5") as rec:
    ...     out = model(torch.ones(5, 4))
    >>> fastrec.recover("linear.h5", to="copy.h5")
    Recovered(path='copy.h5', passes=1, records=1, steps=0, lost='nothing')

    Arguments:
        path: the path that the recorder was given, or a folder, in which each recording is finished that can be.
        to: where to write finished files, without a change to the others; by default they are finished in place.
        force: finish a recording in place although it can't be known whether a recorder still writes it, because its
            file system has no locks or it was recorded with ``locking=False``.
        discard: remove the file of the killed process even if something in it is damaged. By default it is kept then,
            as run.00000.h5.tmp.damaged.

    All values are compared with their checksums. What is damaged is named in ``lost``, and the rest is written.
    ``load`` reads such a recording as it is; other tools need a finished one. Raises what ``load`` does,
    RecordingExistsError where there is something at ``to``, and RecordingFileError where a recording that is still
    being written would be finished in place.
    """
    options = RecoverOptions(force=force, discard=discard)
    if is_one_recording(path):
        return recover_files(path, to, options)
    return _recover_folder(path, None if to is None else fspath(to), options)


def _recover_folder(path: str | PathLike[str], to: str | None, options: RecoverOptions) -> Recovered:
    """Finish what was left in a folder; what is still written, or can't be recovered, is told and left alone."""
    if to is not None:
        makedirs(to, exist_ok=True)
    recovered: list[Recovered] = []
    lost: list[str] = []
    for recording in recordings_of(path):
        try:
            result = recover_files(recording, None if to is None else join(to, basename(recording)), options)
        except FastrecError as error:
            lost.append(str(error))
        else:
            recovered.append(result)
            lost += [] if result.lost == "nothing" else [f"{recording}: {result.lost}"]
    passes, records, steps = (sum(getattr(each, name) for each in recovered) for name in ("passes", "records", "steps"))
    return Recovered(fspath(path) if to is None else to, passes, records, steps, "; ".join(lost) or "nothing")
