"""Checks that the checksums in a recording's files fit, and that they cover what it speaks of."""

from pathlib import Path

import numpy as np

from fastrec.sinks.hdf5.checksums import checksum
from fastrec.sinks.hdf5.contents import Contents, read_contents
from fastrec.sinks.hdf5.layout import CHECKED_TABLES, CHECKS, OVERFLOW, PART_PREFIXES, Addresses, FileAddress
from fastrec.sinks.hdf5.reader import ReadFile, find_files

Spans = dict[tuple[int, bool], list[tuple[int, int]]]
"""The stretches that have a checksum, by number of the data and whether they are in the overflow set."""


def check_checksums(path: Path, *, covered: bool = True) -> int:
    """Each checksum fits its rows, and (``covered``) each record's value has one; how many there are."""
    files = find_files(path)
    contents = read_contents(files)
    return sum(_check_file(file, contents, covered) for file in files)


def _check_file(file: ReadFile, contents: Contents, covered: bool) -> int:
    offset = contents.sessions[file.number].offset.data
    table_names = {number: name for name, number in CHECKED_TABLES.items()}
    spans: Spans = {}
    checks = file.table(CHECKS).tolist()
    for number, row, count, expected, _ in checks:
        name = table_names[number] if number < 0 else contents.log.data[file.number, number + offset].name
        address = FileAddress.decode(row, name)
        assert checksum(file.rows(address.dataset, address.row, count)) == expected, (address, count)
        spans.setdefault((number, address.dataset == OVERFLOW), []).append((address.row, address.row + count))
    if covered:
        _check_covered(file, contents, spans)
    return len(checks)


def _check_covered(file: ReadFile, contents: Contents, spans: Spans) -> None:
    records, offset = contents.records, contents.sessions[file.number].offset.data
    for prefix in PART_PREFIXES.values():
        in_file = (records[prefix + "segment"] == file.number) & (records[prefix + "data"] >= 0)
        for number in np.unique(records[prefix + "data"][in_file]).tolist():
            info = contents.log.data[file.number, number]
            if 0 in info.shape:
                continue
            addresses = Addresses(records[prefix + "row"][in_file & (records[prefix + "data"] == number)])
            for rows, in_overflow in ((addresses.rows, False), (addresses.overflow_bytes, True)):
                inside = np.zeros(len(rows), bool)
                for start, stop in spans.get((number - offset, in_overflow), []):
                    inside |= (start <= rows) & (rows < stop)
                assert inside.all(), (info, rows[~inside])
