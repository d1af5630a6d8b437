"""Which data sets a new file gets, and how much room each has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from fastrec.sinks._hdf5_file import Wanted, attribute, name_of
from fastrec.sinks._hdf5_layout import COUNTERS, COUNTERS_ROW, LATE, LOG, TABLES, DataInfo
from fastrec.sinks._hdf5_log import torch_dtype_of

MOST_DATA_SETS = 512
LARGEST_ROW = 1 << 30  # a chunk of HDF5 is less than 4 GiB; larger values lie among the late ones
MOST_DIMENSIONS = 31
LEAST_TOLD = 1 << 16
"""Rows of a table that there is room for in any case; what is late needs some too."""

MOST_TOLD = 2048
"""What the log says of one data set takes less than so many bytes."""


class Needs(msgspec.Struct):
    """What a new segment has to have room for: rows of its tables, and of each data set that is worth one.

    ``rows`` are needed at once, ``weights`` the bytes that came of late, by number of the data.
    """

    rows: Mapping[int, int]
    weights: Mapping[int, int]
    tables: Mapping[str, int]


def planned(infos: Sequence[DataInfo], needs: Needs, nbytes: int) -> list[Wanted]:
    """The data sets of a segment: those that hold most of what came of late, each with its share of the room."""
    chosen = sorted(needs.weights, key=lambda number: -needs.weights[number])[:MOST_DATA_SETS]
    chosen = [n for n in chosen if 0 < needs.weights[n] and _row_bytes(infos[n]) <= LARGEST_ROW]
    chosen = sorted(n for n in chosen if fits(infos[n]))
    total = sum(needs.weights[number] for number in chosen)
    wanted: dict[str, Wanted] = {}
    for number in chosen:
        info = infos[number]
        share = max(nbytes * needs.weights[number] // total, nbytes // (8 * len(chosen)))
        rows = max(min(share // _row_bytes(info), nbytes // 256), 2 * needs.rows.get(number, 0), 1)
        folder, _, plain = info.name.partition("/")
        name = name_of(folder, plain, wanted)
        wanted[name] = wanted_of(info, number, name, rows)
    late = sum(_row_bytes(infos[n]) * rows + 64 for n, rows in needs.rows.items() if n not in chosen)
    wanted[LATE] = Wanted(LATE, "uint8", (), max(nbytes // 16, 2 * late))
    wanted[LOG] = Wanted(LOG, "uint8", (), max(nbytes // 64, 4 * needs.tables.get(LOG, 0)) + 2 * MOST_TOLD * len(infos))
    records = sum(one.rows for name, one in wanted.items() if name != LATE and name != LOG)
    for table, dtype in TABLES.items():
        rows = min(nbytes // 256, LEAST_TOLD + 2 * records)
        wanted[table] = Wanted(table, dtype, (), max(rows, 2 * needs.tables.get(table, 0) + 4 * len(infos)))
    wanted[COUNTERS] = Wanted(COUNTERS, COUNTERS_ROW, (), 2)
    return list(wanted.values())


def fits(info: DataInfo) -> bool:
    """Whether HDF5 has data sets of so many dimensions."""
    return len(info.shape) <= MOST_DIMENSIONS


def _row_bytes(info: DataInfo) -> int:
    if info.part == "step":
        return info.step_dtype().itemsize
    return torch_dtype_of(info.dtype).itemsize * int(np.prod(info.shape, dtype=np.int64))


def wanted_of(info: DataInfo, number: int, name: str, rows: int) -> Wanted:
    """The data set of some data."""
    of = attribute(info.name.partition("/")[2])
    attributes = {"number": str(number), "of": of, "part": info.part, "torch_dtype": info.dtype}
    if info.part == "step":
        return Wanted(name, info.step_dtype(), (), rows, attributes)
    return Wanted(name, info.dtype, info.shape, rows, attributes)
