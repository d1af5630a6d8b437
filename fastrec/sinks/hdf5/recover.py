"""Finishing the files that a killed process left.

    recover_files("run.h5", None, RecoverOptions())            # in place
    recover_files("run.h5", "rescued.h5", RecoverOptions())    # finished copies, the files there left alone

A file in progress is whole as it is: fastrec reads the rows that are marked as written. What other tools lack is a file
without the room that was never used. So each file in progress is copied, with as many rows of each data set as other
rows refer to. Rows stay where they are in their data sets, and values in the overflow set stay there, so that addresses
in other files still hold.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import msgspec
import numpy as np

from fastrec._errors import DamagedFileError, FastrecError, OptionError, RecordingExistsError, RecordingFileError
from fastrec.sinks.hdf5.contents import Contents, written
from fastrec.sinks.hdf5.copy_file import CopyOptions, write_source
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
from fastrec.sinks.hdf5.merged import open_source, shown_recordings
from fastrec.sinks.hdf5.paths import Paths, is_in_progress, lock_unwritten, os_message, remove_part, rename_to_free
from fastrec.sinks.hdf5.reader import ReadFile, paths_of
from fastrec.sinks.hdf5.salvage import salvage_contents
from fastrec.sinks.hdf5.source import HDF5Source
from fastrec.sinks.hdf5.structure import DatasetSpec, Rewriting, rewrite
from fastrec.sinks.hdf5.system import check_writable_here
from fastrec.sinks.hdf5.virtual import write_virtual_segments

DAMAGED_SUFFIX = ".damaged"
"""Added to the names of files in progress that were recovered in part; no reader and no recorder looks at them."""


class Recovered(msgspec.Struct, frozen=True):
    """The result of recovering a recording: where it is, what it has, and what is not in it."""

    path: str
    passes: int
    records: int
    steps: int
    lost: str


class RecoverOptions(msgspec.Struct, frozen=True):
    """``force``: go on where nobody can know whether the recording is still written. ``discard``: remove the files in
    progress even if something in them could not be read."""

    force: bool = False
    discard: bool = False


def recover_files(
    path: str | os.PathLike[str], to: str | os.PathLike[str] | None, options: RecoverOptions
) -> Recovered:
    """Finish the files in place, or make finished copies elsewhere."""
    check_writable_here()
    if shown_recordings(path) is not None:
        return _recover_merged(path, to)
    source, target = paths_of(path), paths_of(path) if to is None else Paths(to)
    if to is not None:
        _check_free(target)
        return _recover(source, target, options)
    with _claimed(source, options):
        return _recover(source, target, options)


def _recover_merged(path: str | os.PathLike[str], to: str | os.PathLike[str] | None) -> Recovered:
    """A file that shows others is finished, as they were when it was made."""
    if to is not None:
        raise OptionError(
            f"{os.fspath(path)!r} shows other recordings and is whole; fastrec.files.repack copies all of them to one "
            "file"
        )
    merged = open_source(path)
    n_steps = sum(len(steps.numbers) for steps in merged.steps())
    return Recovered(os.fspath(path), merged.n_passes(), len(merged.records()), n_steps, _joined(merged.losses()))


@contextmanager
def _claimed(source: Paths, options: RecoverOptions) -> Iterator[None]:
    """Keep recorders away from the files in progress; an error where somebody writes them, or might do so."""
    with ExitStack() as stack:
        for path in source.files():
            if is_in_progress(path):
                descriptor = lock_unwritten(path)
                if descriptor is not None:
                    stack.callback(os.close, descriptor)
                elif not options.force:
                    raise _unknown_writer(path, "lies in a file system that has no locks")
        yield


def _unknown_writer(path: str, why: str) -> RecordingFileError:
    return RecordingFileError(
        f"{path!r} {why}, so it can't be known whether a recorder still writes it; make a copy elsewhere with "
        "recover(..., to=...), or, if you are certain that nobody writes it, give recover(..., force=True)"
    )


def _recover(source: Paths, target: Paths, options: RecoverOptions) -> Recovered:
    contents = salvage_contents(source.path)
    files = list(contents.files.values())
    in_place = target.path == source.path
    growing = [file for file in files if file.in_progress]
    if in_place and growing and contents.log.facts.get("locking") is False and not options.force:
        raise _unknown_writer(growing[0].path, "was recorded without a lock")
    losses = [str(loss) for loss in contents.losses]
    try:
        if losses:
            _write_rest(contents, source, target, losses, options)
        else:
            _finish(files, contents, source, target)
    except OSError as error:
        if isinstance(error, FastrecError):
            raise
        raise RecordingFileError(f"{target.path!r} can't be written: {os_message(error)}") from error
    recovered = HDF5Source(target.path, salvage_contents(target.path) if losses else None)
    n_steps = sum(len(steps.numbers) for steps in recovered.steps())
    if growing:
        losses.append(_describe_unflushed(contents))
    return Recovered(target.path, recovered.n_passes(), len(recovered.records()), n_steps, _joined(losses))


def _joined(losses: Sequence[str]) -> str:
    return "; ".join(losses) or "nothing"


def _write_rest(
    contents: Contents, source: Paths, target: Paths, losses: Sequence[str], options: RecoverOptions
) -> None:
    """Write what is left of a damaged recording as one file; the files that it was read from are kept."""
    files = list(contents.files.values())
    if target.path == source.path:
        if not all(file.in_progress and file.number == 0 for file in files):
            if not any(file.in_progress for file in files):
                return  # the finished files are left as they are
            raise DamagedFileError(
                f"{losses[0]}{f', and {len(losses) - 1} more' if len(losses) > 1 else ''}; nothing was changed, and "
                "recover(..., to=...) writes what is left as one file"
            )
    rest = HDF5Source(source.path, contents)
    identity = msgspec.structs.replace(rest.identity(), session=0, segment=0)
    facts = {"header": {}, "began": 0.0, **rest.facts(), "losses": list(losses)}
    write_source(rest, target.path, CopyOptions(identity, facts, rest.begun()), replaces=source.files())
    if target.path == source.path:
        _set_aside(source, files, discard=options.discard)


def _set_aside(source: Paths, files: Sequence[ReadFile], *, discard: bool) -> None:
    """Rename the files in progress that are damaged, so that nothing takes them for a recording."""
    for file in files:
        if not discard:
            existing = [path for path in (file.path, source.map(file.number)) if os.path.lexists(path)]
            for path in existing:
                rename_to_free(path, path + DAMAGED_SUFFIX)
        source.remove_in_progress(file.number)


def _finish(files: list[ReadFile], contents: Contents, source: Paths, target: Paths) -> None:
    """Make the files of the target; in place, remove what only files in progress need."""
    is_one_file = len(files) == 1 and files[0].number == 0
    begun = [*source.segments()]
    for file in files:
        final_path = target.path if is_one_file else target.finalized(file.number)
        if file.in_progress:
            part = target.part(file.number)
            remove_part(part)
            specs = _used_datasets(contents, file)
            rewrite(file.rows, file.index.identity, specs, part, options=Rewriting(durable=True))
            rename_to_free(part, final_path)
        elif target.path != source.path:
            shutil.copyfile(file.path, final_path)
    if not is_one_file:
        write_virtual_segments(target, len(files))
    if target.path == source.path:
        for number in begun:  # also one that had only begun; what is there was locked
            source.remove_in_progress(number)
            source.remove_unnamed(number)


def _describe_unflushed(contents: Contents) -> str:
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
    for number, row, count, _, _ in written(file.table(CHECKS)).tolist():
        if number in infos:
            dataset, first = FileAddress.decode(row, infos[number].name)
            n_used[dataset] = max(n_used.get(dataset, 0), first + count)


def _check_free(target: Paths) -> None:
    existing = [target.path] if os.path.lexists(target.path) else []
    existing += [path for paths in target.segments().values() for path in paths]
    if existing:
        raise RecordingExistsError(f"{existing[0]!r} exists; give another path to recover to")
