"""Making one recording of those of several processes."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterable

import msgspec

from fastrec._errors import FastrecWarning, OptionError, RecordingFileError
from fastrec.sinks.hdf5.copy_file import CopyOptions, Progress, check_free, make_whole, write_source
from fastrec.sinks.hdf5.folder import ProcessRecording, check_together, order_of, process_of, recordings_of
from fastrec.sinks.hdf5.layout import MERGED, Identity
from fastrec.sinks.hdf5.merged import MergedSource, ShownRecording, is_near, shown_recordings
from fastrec.sinks.hdf5.source import HDF5Source
from fastrec.sinks.hdf5.system import limit
from fastrec.sinks.hdf5.virtual import write_virtual

Path = str | os.PathLike[str]

OTHER_FILES = 32
"""About how many files a program has open besides those that a merged file shows: libraries, sockets, its output."""


class Merged(msgspec.Struct, frozen=True):
    """The result of merging: where the recording is, what it was made of in which order, and how much it has."""

    path: str
    sources: list[str]
    ranks: list[int]
    passes: int
    records: int
    steps: int


def merge(paths: Iterable[Path], to: Path, *, virtual: bool = False, progress: Progress | None = None) -> Merged:
    """Make one recording of those of several ranks or workers.

    >>> import torch, fastrec
    >>> from fastrec.files import merge
    >>> model = torch.nn.Linear(4, 2)
    >>> for rank in range(2):
    ...     with fastrec.Recorder(model, keep_op="linear", sink=f"part.{rank}.h5") as rec:
    ...         out = model(torch.ones(5, 4))
    >>> merge(["part.0.h5", "part.1.h5"], "whole.h5").ranks
    [0, 1]
    >>> whole = fastrec.load("whole.h5")
    >>> whole, whole.ranks[1]
    (<Recording: 2 records of 1 site in 2 passes>, <Recording: 1 record of 1 site in 1 pass>)

    Arguments:
        paths: the recordings, finished, or folders of them. They come in the order of the ranks in their files, and
            those of one rank as they began; where one has no rank, they come in the order given and are numbered in it.
        to: where to write; there must be nothing yet.
        virtual: write a small file that shows the others, which have to stay where they are as seen from it. By
            default everything is copied.
        progress: called with the bytes that were copied so far, and with their total.

    Passes are numbered through: those of the second recording come after those of the first. Steps count within the
    phases of each, so ``recording.ranks[1]`` is what the second one was, and episodes never go from one to the next.
    Raises RecordingNotFoundError where one is missing, and OptionError where they don't belong together.
    """
    given_paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    target = check_free(to)
    if not given_paths:
        raise OptionError("merge needs the recordings to merge, and none was given")
    recordings = _in_order([_finished(path) for given in given_paths for path in recordings_of(given)])
    _check_runs(recordings)
    check_together([(recording.path, recording.origin) for recording in recordings])
    merged = MergedSource([(recording.source, recording.origin) for recording in recordings])
    identity = Identity(uuid.uuid4().hex, 0, MERGED if virtual else 0, -1, os.getpid())
    if virtual:
        _write_shown(target, identity, recordings)
    else:
        write_source(merged, target, CopyOptions(identity, merged.facts(), merged.begun(), progress=progress))
    n_steps = sum(len(steps.numbers) for steps in merged.steps())
    return Merged(
        path=target,
        sources=[recording.path for recording in recordings],
        ranks=[recording.origin.rank for recording in recordings],
        passes=merged.n_passes(),
        records=len(merged.records()),
        steps=n_steps,
    )


def _finished(path: str) -> ProcessRecording:
    if shown_recordings(path) is not None:
        raise OptionError(f"{path!r} was merged already; name the recordings that it shows")
    source = HDF5Source(path)
    if source.catalog.origins:
        raise OptionError(f"{path!r} was merged already; name the recordings that it was made of")
    unfinished = [file for file, in_progress in source.paths() if in_progress]
    if unfinished:
        raise RecordingFileError(f"{unfinished[0]!r} is not finished; let its process end, or recover {path!r} first")
    return process_of(path, source)


def _in_order(recordings: list[ProcessRecording]) -> list[ProcessRecording]:
    """By rank, and the attempts of a rank as they began; where one has no rank, all are numbered as they were given."""
    if min(recording.origin.rank for recording in recordings) >= 0:
        return sorted(recordings, key=lambda recording: order_of(recording.path, recording.origin))
    return [
        msgspec.structs.replace(recording, origin=msgspec.structs.replace(recording.origin, rank=rank))
        for rank, recording in enumerate(recordings)
    ]


def _check_runs(recordings: list[ProcessRecording]) -> None:
    path_of_run: dict[str, str] = {}
    for recording in recordings:
        run = recording.origin.run
        if run in path_of_run:
            raise OptionError(f"{recording.path!r} and {path_of_run[run]!r} are the same recording")
        path_of_run[run] = recording.path


def _write_shown(target: str, identity: Identity, recordings: list[ProcessRecording]) -> None:
    """Write a file that shows the recordings where they are."""
    folder = os.path.dirname(target) or "."
    shown = [
        ShownRecording(os.path.relpath(recording.path, folder), len(recording.source.records()), recording.origin)
        for recording in recordings
    ]
    far = next((recording for recording in shown if not is_near(recording.path)), None)
    if far is not None:
        raise OptionError(
            f"{target!r} can only show recordings in its own folder, below it or in a folder beside it, and "
            f"{far.path!r} is none of these; write it nearer to them, or copy them with virtual=False"
        )
    files = [file for recording in recordings for file, _ in recording.source.paths()]
    sources = msgspec.json.encode(shown, enc_hook=repr)
    most = limit("NOFILE")
    if most is not None and len(files) + OTHER_FILES > most:
        # What HDF5 can't open it reads as missing values, without an error.
        warnings.warn(
            f"{target!r} shows {len(files)} files; fastrec reads all of them, but h5py and other tools open them all "
            f"at once, and this process may have {most} open files: they would read the rest as missing values. Raise "
            "the limit where they read it (ulimit -n), or copy with virtual=False",
            FastrecWarning,
            stacklevel=3,
        )
    make_whole(target, lambda part: write_virtual(part, identity, files, sources))
