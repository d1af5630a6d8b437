"""Finishing the files that a killed process left.

    recover_files("run.h5", None)            # in place
    recover_files("run.h5", "rescued.h5")    # finished copies, the files there left alone

A file in progress is whole as it is: fastrec reads the rows that are marked as written. What other tools lack is a file
without the room that was never used. So each file in progress is copied, with as many rows of each data set as other
rows refer to. Rows stay where they are in their data sets, and values in the overflow set stay there, so that addresses
in other files still hold.
"""

from __future__ import annotations

import os
import shutil

import msgspec
import numpy as np

from fastrec._errors import RecordingExistsError, RecordingFileError
from fastrec.sinks.hdf5.contents import Contents, read_contents
from fastrec.sinks.hdf5.layout import (
    CHECKS,
    COUNTERS,
    COUNTERS_ROW,
    LOG,
    OVERFLOW,
    PART_PREFIXES,
    TABLES,
    Addresses,
    DataInfo,
    FileAddress,
    Rows,
)
from fastrec.sinks.hdf5.paths import Paths, os_message
from fastrec.sinks.hdf5.reader import ReadFile, find_files
from fastrec.sinks.hdf5.source import HDF5Source
from fastrec.sinks.hdf5.structure import DatasetSpec, Rewriting, rewrite
from fastrec.sinks.hdf5.system import check_writable_here
from fastrec.sinks.hdf5.virtual import write_virtual_segments


class Recovered(msgspec.Struct, frozen=True):
    """The result of recovering a recording: where it is, what it has, and what is not in it."""

    path: str
    passes: int
    records: int
    steps: int
    lost: str


def recover_files(path: str | os.PathLike[str], to: str | os.PathLike[str] | None) -> Recovered:
    """Finish the files in place, or make finished copies elsewhere."""
    check_writable_here()
    source, target = Paths(path), Paths(path if to is None else to)
    if to is not None:
        _check_free(target)
    elif (locked := source.locked_file()) is not None:
        raise RecordingFileError(
            f"{locked!r} is being written by another process, or open in another program; let that end, or make a copy "
            "elsewhere with recover(..., to=...)"
        )
    files = find_files(path)
    contents = read_contents(files)
    try:
        _finish(files, contents, source, target)
    except OSError as error:
        if isinstance(error, RecordingFileError):
            raise
        raise RecordingFileError(f"{target.path!r} can't be written: {os_message(error)}") from error
    recovered = HDF5Source(target.path)
    n_steps = sum(len(steps.numbers) for steps in recovered.steps())
    lost = _describe_lost(contents) if any(file.in_progress for file in files) else "nothing"
    return Recovered(target.path, recovered.n_passes(), len(recovered.records()), n_steps, lost)


def _finish(files: list[ReadFile], contents: Contents, source: Paths, target: Paths) -> None:
    """Make the files of the target; in place, remove what only files in progress need."""
    is_one_file = len(files) == 1 and files[0].number == 0
    for file in files:
        final_path = target.path if is_one_file else target.finalized(file.number)
        if file.in_progress:
            part = target.part(file.number)
            specs = _used_datasets(contents, file)
            rewrite(file.rows, file.index.identity, specs, part, options=Rewriting(durable=True))
            os.replace(part, final_path)
        elif target.path != source.path:
            shutil.copyfile(file.path, final_path)
    if not is_one_file:
        write_virtual_segments(target, len(files))
    if target.path == source.path:
        for number in source.segments():  # also one that had only begun
            source.remove_in_progress(number)


def _describe_lost(contents: Contents) -> str:
    seconds = contents.log.facts.get("flush_seconds")
    last = int(contents.passes["pass_index"].max(initial=-1))
    after = f"after pass {last}" if last >= 0 else "at all"
    return f"what ran {after}, if anything did: it was not flushed yet, which happens every {seconds} s"


def _used_datasets(contents: Contents, file: ReadFile) -> list[DatasetSpec]:
    """The data sets of a segment, with as many rows as other rows refer to."""
    specs: dict[str, DatasetSpec] = {}
    first_number = contents.sessions[file.number].offset.data
    infos = {number: info for (segment, number), info in contents.log.data.items() if segment == file.number}
    for number, info in infos.items():
        if info.name != OVERFLOW:
            of = info.site_or_phase(contents.log.catalog)
            specs[info.name] = DatasetSpec.of_data(info.name, info, number - first_number, of, 0)
    for name in (OVERFLOW, LOG):
        specs[name] = DatasetSpec(name, "uint8", (), 0)
    for name, row in (*TABLES.items(), (COUNTERS, COUNTERS_ROW)):
        specs[name] = DatasetSpec(name, row, (), 0)
    n_used = {OVERFLOW: 0, **contents.n_read[file.number]}
    source = HDF5Source(file.path, contents)
    for table, prefix in [*((contents.records, prefix) for prefix in PART_PREFIXES.values()), (contents.marks, "")]:
        _count_named(table, prefix, file.number, source, n_used)
    _count_checked(file, {number - first_number: info for number, info in infos.items()}, n_used)
    return [msgspec.structs.replace(spec, rows=n_used.get(name, 0)) for name, spec in specs.items()]


def _count_named(table: Rows, prefix: str, segment: int, source: HDF5Source, n_used: dict[str, int]) -> None:
    """Count the rows of data sets of a segment that the rows of a table name."""
    in_segment = (table[prefix + "segment"] == segment) & (table[prefix + "data"] >= 0)
    for number in np.unique(table[prefix + "data"][in_segment]).tolist():
        info = source.data_info((segment, number))
        addresses = Addresses(table[prefix + "row"][in_segment & (table[prefix + "data"] == number)])
        rows, first_bytes, row_bytes = addresses.rows, addresses.overflow_bytes, info.row_bytes()
        if len(rows):
            n_used[info.name] = max(n_used.get(info.name, 0), int(rows.max()) + 1)
        if len(first_bytes) and row_bytes:
            n_used[OVERFLOW] = max(n_used[OVERFLOW], int(first_bytes.max()) + row_bytes)


def _count_checked(file: ReadFile, infos: dict[int, DataInfo], n_used: dict[str, int]) -> None:
    """Count the rows that checksums are of too, so that these can still be compared."""
    for number, row, count, _, _ in file.table(CHECKS).tolist():
        if number in infos:
            dataset, first = FileAddress.decode(row, infos[number].name)
            n_used[dataset] = max(n_used.get(dataset, 0), first + count)


def _check_free(target: Paths) -> None:
    existing = [target.path] if os.path.lexists(target.path) else []
    existing += [path for paths in target.segments().values() for path in paths]
    if existing:
        raise RecordingExistsError(f"{existing[0]!r} exists; give another path to recover to")
