"""What the files of a recording say of it, without a look at its values."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import msgspec

from fastrec.events.process import Process
from fastrec.sinks.hdf5.folder import AnyPath, is_one_recording, open_any
from fastrec.sinks.hdf5.folder_index import facts_of, read_folder
from fastrec.sinks.hdf5.paths import is_in_progress
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


def describe(path: AnyPath) -> Description:
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
        path: the path that the recorder was given, or a folder, a glob or a list. Of a folder, only recordings that its
            index does not know are opened; the index is made by the recorders that finish, and again where it is old.

    Raises what ``fastrec.load`` does.
    """
    if not is_one_recording(path):
        return _describe_folder(path)
    source = open_any(path)
    parts = [source] if isinstance(source, HDF5Source) else source.sources()
    origins, facts = source.catalog.origins, facts_of(source)
    files = [
        FileFacts(file, os.path.getsize(file), not in_progress) for part in parts for file, in_progress in part.paths()
    ]
    return Description(
        path=os.fspath(path),
        files=files,
        finished=all(file.finished for file in files),
        rank=facts.process.rank if facts.process.rank >= 0 and not origins else None,
        ranks=_distinct_ranks([origin.rank for origin in origins]),
        processes=[origin.process for origin in origins] or [facts.process],
        pid=facts.pid,
        sessions=facts.session + 1,
        began=source.facts().get("began"),
        seconds=facts.seconds,
        passes=facts.passes,
        failed=facts.failed,
        halted=facts.halted,
        entries=facts.entries,
        phases=facts.phases,
        steps=facts.steps,
        step_columns=list(facts.step_columns),
        episodes=facts.episodes,
        sites=len(facts.sites),
        records=facts.records,
        nbytes=facts.nbytes,
        losses=list(facts.losses),
        options=facts.header,
    )


def _describe_folder(path: AnyPath) -> Description:
    """The same of several recordings as one, of which those that the index of the folder knows are not opened."""
    entries, losses = read_folder(path)
    folder_of = {entry.path: os.path.dirname(entry.path) for entry in entries}
    facts = [entry.facts for entry in entries]
    began = min(each.began for each in facts)
    n_episodes = [each.episodes for each in facts if each.steps]
    return Description(
        path=path if isinstance(path, str) else os.fspath(path) if isinstance(path, os.PathLike) else "",
        files=[
            FileFacts(os.path.join(folder_of[entry.path], file.name), file.nbytes, not is_in_progress(file.name))
            for entry in entries
            for file in entry.files
            if not file.name.endswith((".map", ".part", ".damaged"))
        ],
        finished=all(entry.is_finished for entry in entries),
        rank=None,
        ranks=_distinct_ranks([each.process.rank for each in facts]),
        processes=[each.process for each in facts],
        pid=facts[-1].pid,
        sessions=facts[-1].session + 1,
        began=began,
        seconds=max(each.began - began + each.seconds for each in facts),
        passes=sum(each.passes for each in facts),
        failed=sum(each.failed for each in facts),
        halted=sum(each.halted for each in facts),
        entries=_sum_by_name([each.entries for each in facts]),
        phases=_sum_by_name([each.phases for each in facts]),
        steps=sum(each.steps for each in facts),
        step_columns=list(dict.fromkeys(name for each in facts for name in each.step_columns)),
        episodes=None if not n_episodes or None in n_episodes else sum(filter(None, n_episodes)),
        sites=len({name for each in facts for name in each.sites}),
        records=sum(each.records for each in facts),
        nbytes=sum(each.nbytes for each in facts),
        losses=losses,
        options=facts[0].header,
    )


def _distinct_ranks(ranks: list[int]) -> list[int]:
    return list(dict.fromkeys(rank for rank in ranks if rank >= 0))


def _sum_by_name(counts: list[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)
