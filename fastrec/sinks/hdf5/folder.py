"""Recordings of several processes, found in folders and read as one.

    recordings_in("run/")                   # ['run/main.0.1f3a9c2e.h5', 'run/main.1.77d0b1c4.h5']
    open_any("run/"), open_any(["a.h5", "b.h5"]), open_any("run/main.*.h5")

Finished files, growing ones and those of killed processes are read together. What can't be read of one process must not
hide what the others recorded: a damaged file is a loss that the source tells of. Only where nothing can be read at all,
or where the recordings don't go together, there is an error.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, TypeGuard

import msgspec

from fastrec._errors import FastrecError, OptionError, RecordingNotFoundError
from fastrec.events.sites import Origin
from fastrec.sinks.hdf5.merged import MergedSource, open_source, shown_path, shown_recordings
from fastrec.sinks.hdf5.paths import SUFFIXES, Paths, is_folder
from fastrec.sinks.hdf5.source import HDF5Source

AnyPath: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
"""A recording, a folder of them, a glob such as "run/main.*.h5", or a list of these."""

_SEGMENT = re.compile(r"(.+)\.\d{5}(\.h5|\.hdf5)(\.tmp)?", re.DOTALL)


class ProcessRecording(msgspec.Struct, frozen=True):
    """One of several recordings: where it is, what it holds, and what it is among all."""

    path: str
    source: HDF5Source
    origin: Origin


def is_one_recording(path: AnyPath) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a path is that of one recording, and not of a folder, a glob or a list of several."""
    if not isinstance(path, str | os.PathLike):
        return False
    text = os.fspath(path)
    if is_folder(text) or not glob.has_magic(text):
        return not is_folder(text)
    return os.path.splitext(text)[1] in SUFFIXES and bool(Paths(text).files())  # brackets may be part of a name


def open_any(path: AnyPath, *, verify: bool = False, salvage: bool = False) -> HDF5Source | MergedSource:
    """What one recording holds, or several as one."""
    if is_one_recording(path):
        return open_source(path, verify=verify, salvage=salvage)
    return open_together(recordings_of(path), verify=verify, salvage=salvage)


def recordings_of(path: AnyPath) -> list[str]:
    """The paths of all recordings that are meant, in order; a RecordingNotFoundError where there is none."""
    if isinstance(path, bytes) or not isinstance(path, str | os.PathLike | Iterable):
        raise OptionError(f"{path!r} is no path; give that of a recording, a folder, a glob, or a list of these")
    if not isinstance(path, str | os.PathLike):
        listed = [recording for element in path for recording in recordings_of(element)]
        if not listed:
            raise RecordingNotFoundError("the list of recordings is empty")
        return list(dict.fromkeys(listed))
    text = os.fspath(path)
    if is_one_recording(text):
        return [text]
    if is_folder(text):
        if not os.path.isdir(text):
            file = text.rstrip(os.sep)
            hint = f"; {file!r} is a file" if os.path.exists(file) else ""
            raise RecordingNotFoundError(f"there is no folder {text!r}{hint}")
        recordings, what = recordings_in(text), "in the folder"
    else:
        folder, pattern = os.path.split(text)
        folders = [name for name in sorted(glob.glob(folder)) if os.path.isdir(name)] if folder else ["."]
        inside = [recording for name in folders for recording in recordings_in(name)]
        recordings, what = [name for name in inside if fnmatchcase(os.path.basename(name), pattern)], "that matches"
    if not recordings:
        raise RecordingNotFoundError(f"there is no recording {what} {text!r}")
    return recordings


def recordings_in(folder: str) -> list[str]:
    """The paths of the recordings in a folder, finished or not, as their recorders were given them."""
    with os.scandir(folder) as files:
        names = {recording_name(file.name) for file in files if not file.is_dir()} - {None}
    return [os.path.join(folder, name) for name in sorted(filter(None, names))]


def recording_name(name: str) -> str | None:
    """The name of the recording that a file belongs to, by the name of the file; None where it is of none."""
    segment = _SEGMENT.fullmatch(name)
    if segment is not None:
        return str(segment[1] + segment[2])
    return name if os.path.splitext(name)[1] in SUFFIXES else None


def open_together(paths: Sequence[str], *, verify: bool = False, salvage: bool = False) -> MergedSource:
    """Several recordings as one, in order of their ranks, roles and workers; what can't be read is told as a loss."""
    losses: list[str] = []
    errors: list[FastrecError] = []
    sources: list[tuple[str, HDF5Source]] = []
    for path in paths:
        try:
            opened = open_source(path, verify=verify, salvage=salvage)
        except FastrecError as error:
            check_can_open_more(error)
            if not has_only_begun(path, error):
                losses.append(str(error))
                errors.append(error)
            continue
        if isinstance(opened, HDF5Source) and not opened.catalog.origins:
            sources.append((path, opened))
        elif not _shows_only(path, opened, paths):
            losses.append(f"{path!r} was merged of recordings that are not among these, and is left out; load it alone")
    if not sources:
        raise errors[0] if errors else RecordingNotFoundError(f"nothing was flushed yet to any of {list(paths)}")
    return merge_processes([process_of(path, source) for path, source in sources], losses)


def process_of(path: str, source: HDF5Source) -> ProcessRecording:
    """A recording, with what it is among others."""
    process, identity = source.process(), source.identity()
    began, header = float(source.facts().get("began", 0.0)), source.catalog.header
    origin = Origin(process.rank, identity.pid, identity.run, source.begun(), began, header, process=process)
    return ProcessRecording(path, source, origin)


def merge_processes(processes: Sequence[ProcessRecording], losses: Iterable[str] = ()) -> MergedSource:
    """Recordings as one, with the losses that are known and those that show between them."""
    numbers, told = arrange([(process.path, process.origin) for process in processes])
    merged = [processes[number] for number in numbers]
    return MergedSource([(process.source, process.origin) for process in merged], [*losses, *told])


def arrange(recordings: Sequence[tuple[str, Origin]]) -> tuple[list[int], list[str]]:
    """The order of recordings by their numbers, without copies; and what is missing between them or told of them."""
    told: list[str] = []
    path_of_run: dict[str, str] = {}
    numbers: list[int] = []
    for number in sorted(range(len(recordings)), key=lambda number: order_of(*recordings[number])):
        path, origin = recordings[number]
        if origin.run in path_of_run:
            told.append(f"{path!r} is a copy of {path_of_run[origin.run]!r}, and is left out")
        else:
            path_of_run[origin.run] = path
            numbers.append(number)
    check_together([recordings[number] for number in numbers])
    return numbers, told + _gaps([recordings[number][1] for number in numbers])


def order_of(path: str, origin: Origin) -> tuple[Any, ...]:
    """Ranks in their order, and the attempts of each; processes without a rank by role and worker, and last."""
    facts = origin.process
    return facts.rank < 0, facts.rank, facts.role, facts.worker, facts.attempt, origin.began, path


def check_together(recordings: Sequence[tuple[str, Origin]]) -> None:
    """Raise an OptionError where steps of one recording would not mean the same as those of another."""
    for path, origin in recordings:
        first_path, first = recordings[0]
        autoreset, first_autoreset = (each.header.get("autoreset") for each in (origin, first))
        if autoreset != first_autoreset:
            raise OptionError(
                f"{path!r} was recorded with autoreset={autoreset!r} and {first_path!r} with "
                f"{first_autoreset!r}, so their steps don't mean the same; give a list of those that go together"
            )


def _gaps(origins: Sequence[Origin]) -> list[str]:
    """What of the world is missing, or of another one."""
    worlds = Counter(origin.process.world_size for origin in origins if origin.process.world_size)
    if len(worlds) > 1:
        sizes = " and ".join(f"{size} processes ({count} files)" for size, count in sorted(worlds.items()))
        return [f"the recordings come from worlds of {sizes}, so the same rank may stand for several processes"]
    missing = set(range(next(iter(worlds), 0))) - {origin.process.rank for origin in origins}
    if not missing:
        return []
    listed = ", ".join(map(str, sorted(missing)[:8])) + (" and more" if len(missing) > 8 else "")
    return [f"of {next(iter(worlds))} ranks, {len(missing)} have no recording here: {listed}"]


def check_can_open_more(error: FastrecError) -> None:
    """Raise an error that is not about a file: where a process can open no more, no file is at fault."""
    if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EMFILE, errno.ENFILE):
        raise error


def has_only_begun(path: str, error: FastrecError) -> bool:
    """Whether somebody writes a recording, to which nothing was flushed yet."""
    return isinstance(error, RecordingNotFoundError) and Paths(path).locked_file() is not None


def _shows_only(path: str, opened: HDF5Source | MergedSource, paths: Sequence[str]) -> bool:
    """Whether all that was merged to one recording is among others too, so that it would be read twice."""
    others = {os.path.abspath(other) for other in paths}
    shown = shown_recordings(path)
    if shown is not None:
        return all(os.path.abspath(shown_path(os.path.abspath(path), recording)) in others for recording in shown)
    runs = {origin.run for origin in opened.catalog.origins}
    return runs <= {run for other in paths if other != path for run in _runs_of(other)}


def _runs_of(path: str) -> list[str]:
    try:
        opened = open_source(path)
    except FastrecError:
        return []
    return [] if isinstance(opened, MergedSource) or opened.catalog.origins else [opened.identity().run]
