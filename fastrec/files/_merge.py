"""The recordings of several processes as one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable

import msgspec

from fastrec._errors import OptionError, RecordingFileError
from fastrec.events.sites import Origin
from fastrec.sinks.hdf5.copy_file import Progress, Writing, check_free, write_source
from fastrec.sinks.hdf5.layout import MERGED, Identity
from fastrec.sinks.hdf5.merged import MergedSource
from fastrec.sinks.hdf5.paths import os_message
from fastrec.sinks.hdf5.source import HDF5Source, Named, merged_of
from fastrec.sinks.hdf5.virtual import show

Path = str | os.PathLike[str]


class Merged(msgspec.Struct, frozen=True):
    """What became of recordings: where they are now, in which order, and how much they have together."""

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
        paths: the recordings, finished. They come in the order of the ranks that their files tell; where some tell
            none, or two the same, in the order given, and are numbered so.
        to: where to write; there must be nothing yet.
        virtual: write a small file that shows the others, which have to stay where they are as seen from it. By
            default everything is copied.
        progress: called with the bytes that were copied so far, and with those that there are.

    Passes are numbered through: those of the second recording come after those of the first. Steps count within the
    phases of each, so ``recording.ranks[1]`` is what the second one was, and episodes never go from one to the next.
    Raises RecordingNotFoundError where one is missing, and OptionError where they don't belong together.
    """
    given = [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    target = check_free(to)
    if not given:
        raise OptionError("merge needs the recordings to merge, and none was given")
    found = _in_order(given, [_finished(path) for path in given])
    _check_together(found)
    merged = MergedSource([(one.source, one.origin) for one in found])
    identity = Identity(uuid.uuid4().hex, 0, MERGED if virtual else 0, -1, os.getpid())
    if virtual:
        _show(target, identity, found)
    else:
        write_source(merged, target, Writing(identity, merged.facts(), merged.begun(), progress=progress))
    steps = sum(len(steps.numbers) for steps in merged.steps())
    ranks = [one.origin.rank for one in found]
    return Merged(target, [one.path for one in found], ranks, merged.n_passes(), len(merged.records()), steps)


class _Source(msgspec.Struct, frozen=True):
    path: str
    source: HDF5Source
    origin: Origin


def _finished(path: str) -> _Source:
    if merged_of(path) is not None:
        raise OptionError(f"{path!r} was merged already; name the recordings that it shows")
    source = HDF5Source(path)
    if source.catalog.origins:
        raise OptionError(f"{path!r} was merged already; name the recordings that it was made of")
    growing = [file for file, growing in source.paths() if growing]
    if growing:
        raise RecordingFileError(f"{growing[0]!r} is not finished; let its process end, or recover {path!r} first")
    identity, facts = source.identity(), source.facts()
    origin = Origin(
        identity.rank, identity.pid, identity.run, source.begun(), float(facts["began"]), source.catalog.header
    )
    return _Source(path, source, origin)


def _in_order(paths: list[str], found: list[_Source]) -> list[_Source]:
    ranks = [one.origin.rank for one in found]
    if min(ranks) >= 0 and len(set(ranks)) == len(ranks):
        return sorted(found, key=lambda one: one.origin.rank)
    return [
        msgspec.structs.replace(one, origin=msgspec.structs.replace(one.origin, rank=rank))
        for rank, one in enumerate(found)
    ]


def _check_together(found: list[_Source]) -> None:
    first, runs = found[0], dict[str, str]()
    for one in found:
        if one.origin.run in runs:
            raise OptionError(f"{one.path!r} and {runs[one.origin.run]!r} are the same recording")
        runs[one.origin.run] = one.path
        here, there = (each.origin.header.get("autoreset") for each in (one, first))
        if here != there:
            raise OptionError(
                f"{one.path!r} was recorded with autoreset={here!r} and {first.path!r} with {there!r}, so their steps "
                "don't mean the same"
            )


def _show(target: str, identity: Identity, found: list[_Source]) -> None:
    folder, part = os.path.dirname(target) or ".", target + ".part"
    named = [Named(os.path.relpath(one.path, folder), len(one.source.records()), one.origin) for one in found]
    files = [file for one in found for file, _ in one.source.paths()]
    try:
        show(part, identity, files, msgspec.json.encode(named, enc_hook=repr))
        os.replace(part, target)
    except OSError as error:
        raise RecordingFileError(f"{target!r} can't be written: {os_message(error)}") from error
    finally:
        if os.path.exists(part):
            os.unlink(part)
