"""What is left of a damaged recording.

    contents = salvage_contents("run.h5")
    contents.losses                           # what is not in its tables, and which values may be wrong

One damaged row costs the pass or record that it is about, a damaged line of the log what only that line says, a damaged
segment the passes in it. Records whose values can't be reached are left out too.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from fastrec._errors import DamagedFileError
from fastrec.sinks.hdf5.blocks import blocks_of
from fastrec.sinks.hdf5.contents import Contents, Tables, read_contents
from fastrec.sinks.hdf5.layout import OVERFLOW, PART_PREFIXES, Addresses, Rows
from fastrec.sinks.hdf5.reader import Loss, find_files


def salvage_contents(path: str | os.PathLike[str]) -> Contents:
    """All that can be read of a recording; a DamagedFileError where that is nothing."""
    losses: list[Loss] = []
    files = find_files(path, losses=losses)
    contents = read_contents(files, salvage=True, losses=losses)
    reachable = reachable_records(contents)
    n_lost = int((~reachable).sum())
    if n_lost:
        contents.losses = (*contents.losses, Loss(os.fspath(path), "", f"the values of {n_lost} records are not there"))
        contents.use(only_records(contents.tables, reachable))
    contents.losses = (*contents.losses, *damaged_blocks(contents))
    return contents


def damaged_blocks(contents: Contents) -> list[Loss]:
    """The blocks that are not what was written."""
    losses = []
    for file in contents.files.values():
        try:
            blocks = list(blocks_of(file, contents))
        except DamagedFileError as error:
            losses.append(Loss(file.path, "", f"its checksums make no sense: {error}"))
            continue
        for block in blocks:
            why, of = block.damage(), f" of {block.of!r}" if block.of else ""
            if why:
                what = f"rows {block.first} to {block.first + block.count - 1}{of} are {why}"
                losses.append(Loss(file.path, block.data_set, what))
    return losses


def reachable_records(contents: Contents) -> npt.NDArray[np.bool_]:
    """Of which records all values are where the records say that they are."""
    records = contents.records
    reachable = np.ones(len(records), np.bool_)
    for prefix in PART_PREFIXES.values():
        keys = np.stack([records[prefix + "segment"], records[prefix + "data"]], 1)
        for segment, number in np.unique(keys, axis=0).tolist():
            if number >= 0:
                of_key = np.flatnonzero((keys == (segment, number)).all(1))
                reachable[of_key] &= _are_inside(
                    contents, (segment, number), Addresses(records[prefix + "row"][of_key])
                )
    return reachable


def _are_inside(contents: Contents, key: tuple[int, int], addresses: Addresses) -> npt.NDArray[np.bool_]:
    """Which addresses lie inside of the data sets of some data."""
    info, file = contents.log.data.get(key), contents.files.get(key[0])
    if info is None or file is None:
        return np.zeros(len(addresses), np.bool_)
    extent, overflow, row_bytes = file.index.sets.get(info.name), file.index.sets[OVERFLOW], info.row_bytes()
    if not row_bytes:
        return np.ones(len(addresses), np.bool_)
    n_rows = extent.rows if extent is not None and extent.row_bytes == row_bytes else 0
    encoded = addresses.encoded
    last_byte = overflow.rows - row_bytes
    inside: npt.NDArray[np.bool_] = np.where(encoded < 0, -1 - encoded <= last_byte, encoded < n_rows)
    return inside


def only_records(tables: Tables, kept: npt.NDArray[np.bool_]) -> Tables:
    """The tables with some of the records; each pass keeps those of its own."""
    before = np.concatenate([[0], np.cumsum(kept)])
    passes: Rows = tables.passes.copy()
    passes["count"] = before[passes["first"] + passes["count"]] - before[passes["first"]]
    passes["first"] = before[passes["first"]]
    return Tables(passes, tables.records[kept], tables.marks)
