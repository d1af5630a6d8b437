"""What is in a folder of recordings, without opening them: a small file beside them.

    facts, losses = read_folder("run/")     # one FolderEntry for each recording, and what can't be read
    note_closed("run/main.0.1f3a9c2e.h5")   # a recorder has just finished it

Whoever finishes a recording in a folder adds it to the index, and whoever finds the index old makes it again. So
nothing depends on it: it may be removed, lost between two processes that end at the same moment, or be in a folder that
nobody may write to. An entry counts only while the names, sizes and times of a recording's files are those that it was
made of; what still grows, or was left by a killed process, has none and is opened each time. Values are never read by
it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from fastrec._errors import FastrecError, StepError
from fastrec.events.process import Process
from fastrec.events.sites import Origin
from fastrec.recording._recording import Recording
from fastrec.recording._source import OUTCOMES
from fastrec.sinks.hdf5.folder import (
    AnyPath,
    arrange,
    check_can_open_more,
    has_only_begun,
    recording_name,
    recordings_of,
)
from fastrec.sinks.hdf5.merged import MergedSource, open_source
from fastrec.sinks.hdf5.paths import create_file, is_folder, is_in_progress, open_regular
from fastrec.sinks.hdf5.source import HDF5Source

INDEX = ".fastrec-index.json"
"""The name of the index. It begins with a dot, because nobody has to look at it."""

MAX_INDEX_BYTES = 256 << 20

MAX_RECORDS_AT_CLOSE = 1_000_000
"""A process that ends reads its own tables for the index if they are no longer than this."""

NEW_FORMAT = 1


class RecordingFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one recording has; ``runs`` are those that were merged, where it was made of others."""

    process: Process
    run: str
    pid: int
    session: int
    began: float
    seconds: float
    passes: int
    begun: int
    records: int
    nbytes: int
    failed: int = 0
    halted: int = 0
    entries: dict[str, int] = {}
    phases: dict[str, int] = {}
    sites: tuple[str, ...] = ()
    steps: int = 0
    step_columns: tuple[str, ...] = ()
    episodes: int | None = None
    header: dict[str, Any] = {}
    runs: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()

    @property
    def origin(self) -> Origin:
        """The recording as one of several."""
        return Origin(self.process.rank, self.pid, self.run, self.begun, self.began, self.header, process=self.process)


class FileStamp(msgspec.Struct, frozen=True):
    """A file at one moment; a finished one is never written again."""

    name: str
    nbytes: int
    changed_ns: int


class FolderEntry(msgspec.Struct, frozen=True):
    """A recording of a folder: the path to load, its files, whether it is finished, and what it has."""

    path: str
    files: tuple[FileStamp, ...]
    facts: RecordingFacts

    @property
    def is_finished(self) -> bool:
        """Whether none of its files grows or was left by a killed process."""
        return not any(is_in_progress(file.name) for file in self.files)


class _Index(msgspec.Struct, frozen=True):
    format: int
    recordings: dict[str, tuple[tuple[FileStamp, ...], RecordingFacts]]


def read_folder(path: AnyPath) -> tuple[list[FolderEntry], list[str]]:
    """The recordings of a folder, glob or list in order, and what can't be read or does not go together.

    Opens only what the index does not know, and writes the index anew where it was old.
    """
    recordings = recordings_of(path)
    folders = {folder: _Folder(folder) for folder in dict.fromkeys(map(os.path.dirname, recordings))}
    losses: list[str] = []
    errors: list[FastrecError] = []
    entries: list[FolderEntry] = []
    for recording in recordings:
        try:
            entries.append(folders[os.path.dirname(recording)].entry(recording))
        except FastrecError as error:
            check_can_open_more(error)
            if not has_only_begun(recording, error):
                losses.append(str(error))
                errors.append(error)
    if not entries and errors:
        raise errors[0]
    # A glob or a list is not asked to leave a file behind in a folder that may be full of other things.
    if isinstance(path, str | os.PathLike) and is_folder(os.fspath(path)):
        for folder in folders.values():
            folder.update(recordings)
    runs = {entry.facts.run for entry in entries if not entry.facts.runs}
    for entry in entries:
        if entry.facts.runs and not set(entry.facts.runs) <= runs:
            losses.append(
                f"{entry.path!r} was merged of recordings that are not among these, and is left out; load it alone"
            )
    single = [entry for entry in entries if not entry.facts.runs]
    numbers, told = arrange([(entry.path, entry.facts.origin) for entry in single])
    ordered = [single[number] for number in numbers]
    return ordered, losses + told + [loss for entry in ordered for loss in entry.facts.losses]


def note_closed(path: str) -> None:
    """Add a recording that was just finished to the index of its folder; it is no harm where that can't be done."""
    folder = _Folder(os.path.dirname(path))
    try:
        source = HDF5Source(path)
        if source.n_records() <= MAX_RECORDS_AT_CLOSE:
            folder.entry(path, source)
            folder.update(None)
    except FastrecError:
        pass  # it is told when the recording is read


def facts_of(source: HDF5Source | MergedSource) -> RecordingFacts:
    """What a recording has, without a look at its values."""
    parts = [source] if isinstance(source, HDF5Source) else source.sources()
    recording, passes, identity = Recording(source), source.passes(), parts[-1].identity()
    sites = recording.sites
    return RecordingFacts(
        process=parts[-1].process(),
        run=identity.run,
        pid=identity.pid,
        session=identity.session,
        began=float(source.facts().get("began", 0.0)),
        seconds=float((passes["started"] + passes["duration"]).max(initial=0)),
        passes=recording.n_passes,
        begun=source.begun(),
        records=recording.n_records,
        nbytes=sum(site.nbytes for site in sites.values()),
        failed=int((passes["outcome"] == OUTCOMES.index("failed")).sum()),
        halted=int((passes["outcome"] == OUTCOMES.index("halted")).sum()),
        entries=_count_by_name(passes["entry"], source.catalog.entries.items),
        phases=_count_by_name(passes["phase"], source.catalog.phases.items),
        sites=tuple(sites),
        steps=len(recording.steps),
        step_columns=tuple(recording.steps),
        episodes=_count_episodes(recording),
        header=source.catalog.header,
        runs=tuple(origin.run for origin in source.catalog.origins),
        losses=tuple(source.losses()),
    )


class _Folder:
    """The files of a folder at one moment, and its index."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._stamps = _stamps_of(folder)
        self._index = _read_index(folder)
        self._new: dict[str, tuple[tuple[FileStamp, ...], RecordingFacts]] = {}

    def entry(self, path: str, source: HDF5Source | None = None) -> FolderEntry:
        """A recording, of the index if its files are those that this was made of."""
        name = os.path.basename(path)
        stamps = self._stamps.get(name, ())
        known = self._index.get(name)
        if known is not None and known[0] == stamps and source is None:
            return FolderEntry(path, stamps, known[1])
        facts = facts_of(open_source(path) if source is None else source)
        entry = FolderEntry(path, stamps, facts)
        # One that shows other files may change with them, and one that grows is not what it was.
        if entry.is_finished and not facts.runs and not facts.losses:
            self._new[name] = (stamps, facts)
        return entry

    def update(self, recordings: Sequence[str] | None) -> None:
        """Write the index if it was old: with what is new, and without recordings that are gone."""
        kept = {name: entry for name, entry in self._index.items() if self._stamps.get(name) == entry[0]}
        if self._new or (recordings is not None and len(kept) < len(self._index)):
            _write_index(self._folder, {**kept, **self._new})


def _stamps_of(folder: str) -> Mapping[str, tuple[FileStamp, ...]]:
    """The files of each recording, by its name."""
    stamps: dict[str, list[FileStamp]] = {}
    try:
        with os.scandir(folder or ".") as files:
            for file in files:
                recording = recording_name(file.name)
                if recording is not None:
                    stat = file.stat()
                    stamps.setdefault(recording, []).append(FileStamp(file.name, stat.st_size, stat.st_mtime_ns))
    except OSError:  # gone meanwhile: opening the recordings says so
        return {}
    return {name: tuple(sorted(of_name, key=lambda stamp: stamp.name)) for name, of_name in stamps.items()}


def _read_index(folder: str) -> dict[str, tuple[tuple[FileStamp, ...], RecordingFacts]]:
    """What the index says; nothing where there is none that makes sense."""
    try:
        descriptor = open_regular(os.path.join(folder, INDEX))
    except (OSError, FastrecError):
        return {}
    with open(descriptor, "rb") as file:
        if os.fstat(descriptor).st_size > MAX_INDEX_BYTES:
            return {}
        try:
            index = msgspec.json.decode(file.read(), type=_Index)
        except (OSError, msgspec.DecodeError, ValueError, RecursionError):
            return {}
    return index.recordings if index.format == NEW_FORMAT else {}


def _write_index(folder: str, recordings: dict[str, tuple[tuple[FileStamp, ...], RecordingFacts]]) -> None:
    """Replace the index as a whole; a reader sees the old one or the new one."""
    path = os.path.join(folder, INDEX)
    part = f"{path}.{uuid.uuid4().hex[:8]}.part"
    try:
        with open(create_file(part), "wb") as file:
            file.write(msgspec.json.encode(_Index(NEW_FORMAT, recordings)))
        os.replace(part, path)
    except (OSError, FastrecError):  # a folder that nobody may write to, or a full disk
        if os.path.lexists(part):
            os.unlink(part)


def _count_by_name(numbers: Any, names: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for number, count in zip(*np.unique(numbers, return_counts=True), strict=True):
        counts[names[number]] = counts.get(names[number], 0) + int(count)
    return counts


def _count_episodes(recording: Recording) -> int | None:
    try:
        return len(recording.episodes())
    except StepError:
        return None
