"""What the files of a recording say of it, without a look at its values."""

from __future__ import annotations

import os
from typing import Any, Literal

import msgspec
import numpy as np

from fastrec._errors import StepError
from fastrec.events.process import Process
from fastrec.recording._recording import Recording
from fastrec.recording._source import OUTCOMES
from fastrec.sinks.hdf5.folder import open_any
from fastrec.sinks.hdf5.layout import Rows
from fastrec.sinks.hdf5.source import HDF5Source


class FileFacts(msgspec.Struct, frozen=True):
    """One file of a recording: its path, its size, and whether it was finished."""

    path: str
    nbytes: int
    finished: bool


class Description(msgspec.Struct, frozen=True):
    """What a recording is and how much it has.

    ``sessions`` counts the recorders that wrote it one after the other, ``rank`` is None where its process had none;
    ``ranks`` are those that were merged or lie in the folder; ``processes`` tell of each file's role, worker and host.
    ``began`` is in seconds since 1970, ``seconds`` from then to the end of the last pass. ``entries`` and ``phases``
    count the passes of each that have rows (a pass that kept nothing has none). ``episodes`` is None where the steps do
    not say when one ends. ``nbytes`` are those of the values; ``losses`` say what is damaged or missing, and
    ``options`` are those of the recorder.
    """

    path: str
    files: list[FileFacts]
    finished: bool
    rank: int | None
    ranks: list[int]
    processes: list[Process]
    pid: int
    sessions: int
    began: float | None
    seconds: float
    passes: int
    failed: int
    halted: int
    entries: dict[str, int]
    phases: dict[str, int]
    steps: int
    step_columns: list[str]
    episodes: int | None
    sites: int
    records: int
    nbytes: int
    losses: list[str]
    options: dict[str, Any]


def describe(path: str | os.PathLike[str]) -> Description:
    """Say what a recording is and how much it has.

    >>> import torch, fastrec
    >>> from fastrec.files import describe
    >>> model = torch.nn.Linear(4, 2)
    >>> with fastrec.Recorder(model, keep_op="linear", sink="described.h5") as rec:
    ...     out = model(torch.ones(5, 4))
    >>> description = describe("described.h5")
    >>> description.finished, description.records, description.nbytes, description.options["keep_op"]
    (True, 1, 40, "op('linear')")

    Arguments:
        path: the path that the recorder was given, or a folder.

    Raises what ``fastrec.load`` does.
    """
    source = open_any(path)
    parts = [source] if isinstance(source, HDF5Source) else source.sources()
    recording = Recording(source)
    origins = source.catalog.origins
    passes, sites = source.passes(), recording.sites
    facts, identity = source.facts(), parts[-1].identity()
    files = [
        FileFacts(file, os.path.getsize(file), not in_progress) for part in parts for file, in_progress in part.paths()
    ]
    return Description(
        path=os.fspath(path),
        files=files,
        finished=all(file.finished for file in files),
        rank=identity.rank if identity.rank >= 0 and not origins else None,
        ranks=list(dict.fromkeys(origin.rank for origin in origins if origin.rank >= 0)),
        processes=[origin.process for origin in origins] or [parts[-1].process()],
        pid=identity.pid,
        sessions=identity.session + 1,
        began=facts.get("began"),
        seconds=float((passes["started"] + passes["duration"]).max(initial=0)),
        passes=recording.n_passes,
        failed=_count_outcome(passes, "failed"),
        halted=_count_outcome(passes, "halted"),
        entries=_count_by_name(passes["entry"], source.catalog.entries.items),
        phases=_count_by_name(passes["phase"], source.catalog.phases.items),
        steps=len(recording.steps),
        step_columns=list(recording.steps),
        episodes=_count_episodes(recording),
        sites=len(sites),
        records=recording.n_records,
        nbytes=sum(site.nbytes for site in sites.values()),
        losses=source.losses(),
        options=source.catalog.header,
    )


def _count_outcome(passes: Rows, outcome: Literal["failed", "halted"]) -> int:
    return int((passes["outcome"] == OUTCOMES.index(outcome)).sum())


def _count_by_name(numbers: Rows, names: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for number, count in zip(*np.unique(numbers, return_counts=True), strict=True):
        counts[names[number]] = counts.get(names[number], 0) + int(count)
    return counts


def _count_episodes(recording: Recording) -> int | None:
    try:
        return len(recording.episodes())
    except StepError:
        return None
