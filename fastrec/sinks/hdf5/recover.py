"""Finished files made of those that a killed process left."""

from __future__ import annotations

import os
import shutil

import msgspec
import numpy as np

from fastrec._errors import RecordingExistsError, RecordingFileError
from fastrec.sinks.hdf5.contents import Contents, read_contents
from fastrec.sinks.hdf5.layout import CHECKS, COUNTERS, COUNTERS_ROW, LATE, LOG, TABLES, DataInfo
from fastrec.sinks.hdf5.paths import Paths, os_message
from fastrec.sinks.hdf5.reader import ReadFile, find_files
from fastrec.sinks.hdf5.source import PREFIX, HDF5Source
from fastrec.sinks.hdf5.structure import DatasetSpec, Rewriting, attribute, rewrite
from fastrec.sinks.hdf5.virtual import write_together


class Recovered(msgspec.Struct, frozen=True):
    """What became of a recording: where it is now, what it has, and what is not in it."""

    path: str
    passes: int
    records: int
    steps: int
    lost: str


def recover_files(path: str | os.PathLike[str], to: str | os.PathLike[str] | None) -> Recovered:
    """Finish the files in place, or make finished copies elsewhere."""
    source, target = Paths(path), Paths(path if to is None else to)
    if to is not None:
        _check_free(target)
    files = find_files(path)
    contents = read_contents(files)
    try:
        _finish(files, contents, source, target)
    except OSError as error:
        if isinstance(error, RecordingFileError):
            raise
        raise RecordingFileError(f"{target.path!r} can't be written: {os_message(error)}") from error
    made = HDF5Source(target.path)
    steps = sum(len(steps.numbers) for steps in made.steps())
    lost = _lost(contents) if any(file.growing for file in files) else "nothing"
    return Recovered(target.path, made.n_passes(), len(made.records()), steps, lost)


def _finish(files: list[ReadFile], contents: Contents, source: Paths, target: Paths) -> None:
    """Make the files of the target; those of the source that are not needed any more go, where they are the same."""
    for file in files:
        alone = len(files) == 1 and file.number == 0
        final = target.path if alone else target.sealed(file.number)
        if file.growing:
            part = target.part(file.number)
            rewrite(file.rows, file.map.identity, _used(contents, file), part, options=Rewriting(durable=True))
            os.replace(part, final)
        elif target.path != source.path:
            shutil.copyfile(file.path, final)
    if not (len(files) == 1 and files[0].number == 0):
        write_together(target, len(files))
    if target.path == source.path:
        for number in source.segments():  # also one that had only begun
            source.forget(number)


def _lost(contents: Contents) -> str:
    seconds = contents.log.facts.get("flush_seconds")
    last = int(contents.passes["pass_index"].max(initial=-1))
    after = f"after pass {last}" if last >= 0 else "at all"
    return f"what ran {after}, if anything did: it was not flushed yet, which happens every {seconds} s"


def _used(contents: Contents, file: ReadFile) -> list[DatasetSpec]:
    """The data sets of a segment with as many rows as passes and steps speak of."""
    used = {LATE: 0, **contents.used[file.number]}
    wanted: dict[str, DatasetSpec] = {}
    for (segment, number), info in contents.log.data.items():
        if segment == file.number and info.name != LATE:
            dtype = info.step_dtype() if info.part == "step" else info.dtype
            shape = () if info.part == "step" else info.shape
            own = number - contents.sessions[segment].before.data
            of = _of(contents, info)
            attributes = {"number": str(own), "of": of, "part": info.part, "torch_dtype": info.dtype}
            wanted[info.name] = DatasetSpec(info.name, dtype, shape, 0, attributes)
    places = [(contents.records, prefix) for prefix in PREFIX.values()] + [(contents.marks, "")]
    made = HDF5Source.of(file.path, contents)
    for table, prefix in places:
        here = (table[prefix + "segment"] == file.number) & (table[prefix + "data"] >= 0)
        for number in np.unique(table[prefix + "data"][here]).tolist():
            rows = table[prefix + "row"][here & (table[prefix + "data"] == number)]
            info = made._info((file.number, number))
            nbytes = info.step_dtype().itemsize if info.part == "step" else made._layout((file.number, number))[2]
            if (rows >= 0).any():
                used[info.name] = max(used.get(info.name, 0), int(rows.max()) + 1)
            if (rows < 0).any() and nbytes:
                used[LATE] = max(used[LATE], -1 - int(rows.min()) + nbytes)
    for name in (LATE, LOG):
        wanted[name] = DatasetSpec(name, "uint8", (), 0)
    for name, row in (*TABLES.items(), (COUNTERS, COUNTERS_ROW)):
        wanted[name] = DatasetSpec(name, row, (), 0)
    _keep_checked(contents, file, used)
    return [msgspec.structs.replace(one, rows=used.get(name, 0)) for name, one in wanted.items()]


def _of(contents: Contents, info: DataInfo) -> str:
    catalog = contents.log.catalog
    name = catalog.phases[info.phase] if info.part == "step" else catalog.sites[info.site].name
    return attribute(name)


def _keep_checked(contents: Contents, file: ReadFile, used: dict[str, int]) -> None:
    """What a checksum is of stays, so that it can be checked."""
    before = contents.sessions[file.number].before.data
    names = {
        number - before: info.name for (segment, number), info in contents.log.data.items() if segment == file.number
    }
    for data, row, count, _, _ in file.table(CHECKS).tolist():
        if data in names:
            name, first = (LATE, -1 - row) if row < 0 else (names[data], row)
            used[name] = max(used.get(name, 0), first + count)


def _check_free(target: Paths) -> None:
    there = [target.path] if os.path.lexists(target.path) else []
    there += [path for paths in target.segments().values() for path in paths]
    if there:
        raise RecordingExistsError(f"{there[0]!r} exists; give another path to recover to")
