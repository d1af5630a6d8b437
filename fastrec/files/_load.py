"""Loading recordings from files, and finishing those of killed processes."""

from __future__ import annotations

from os import PathLike
from typing import Literal, overload

from fastrec.recording._recording import Recording
from fastrec.sinks.hdf5.live import LiveRecording
from fastrec.sinks.hdf5.merged import open_source
from fastrec.sinks.hdf5.recover import Recovered, recover_files


@overload
def load(path: str | PathLike[str], *, live: Literal[True]) -> LiveRecording: ...


@overload
def load(path: str | PathLike[str], *, live: bool = False) -> Recording: ...


def load(path: str | PathLike[str], *, live: bool = False) -> Recording:
    """Read a recording from its file, finished or not: everything that was flushed so far.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
    >>> with fastrec.Recorder(model, keep_op="tanh", sink="run.h5") as rec:
    ...     for _ in range(3):
    ...         out = model(torch.ones(5, 4))
    >>> fastrec.load("run.h5").stack("tanh_1").shape
    torch.Size([3, 5, 8])

    Arguments:
        path: the path that the recorder was given, even if the recording has several files, is still being written, or
            was left by a process that was killed.
        live: follow a recording that is being written: the result also has ``refresh()``, which takes in what was
            flushed since, ``follow()``, which waits for it, and ``state``.

    Values are read when they are asked for, onto the CPU. Raises RecordingNotFoundError where there is no recording,
    DamagedFileError where a file is not a recording or not all of one.
    """
    if live:
        return LiveRecording(path)
    return Recording(open_source(path))


def recover(path: str | PathLike[str], to: str | PathLike[str] | None = None, *, force: bool = False) -> Recovered:
    """Finish the file of a recording whose process was killed, and say what is not in it.

    >>> import torch, fastrec
    >>> model = torch.nn.Linear(4, 2)
    >>> with fastrec.Recorder(model, keep_op="linear", sink="linear.h5") as rec:
    ...     out = model(torch.ones(5, 4))
    >>> fastrec.recover("linear.h5", to="copy.h5")
    Recovered(path='copy.h5', passes=1, records=1, steps=0, lost='nothing')

    Arguments:
        path: the path that the recorder was given.
        to: where to write finished files, without a change to the others; by default they are finished in place.
        force: finish in place also what was written without locks (``HDF5Sink(..., locking=False)``, a file system that
            has none), where it can't be known whether its process has ended.

    ``load`` reads such a recording as it is; other tools need a finished one. Raises what ``load`` does,
    RecordingExistsError where there is something at ``to``, and RecordingFileError where a recording that is still
    being written would be finished in place.
    """
    return recover_files(path, to, force=force)
