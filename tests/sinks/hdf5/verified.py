"""Checks that the checksums in a recording's files fit, and that they cover what it speaks of."""

from pathlib import Path

import numpy as np

from fastrec.sinks.hdf5.checksums import checksum
from fastrec.sinks.hdf5.contents import Contents, read_contents
from fastrec.sinks.hdf5.layout import CHECKED, CHECKS, LATE
from fastrec.sinks.hdf5.reader import ReadFile, find_files


def check_checksums(path: Path, *, covered: bool = True) -> int:
    """Each checksum fits its rows, and (``covered``) each record's value has one; how many there are."""
    files = find_files(path)
    contents = read_contents(files)
    total = 0
    for file in files:
        total += _check_file(file, contents, covered)
    return total


def _check_file(file: ReadFile, contents: Contents, covered: bool) -> int:
    before = contents.sessions[file.number].before.data
    names = {-number - 1: name for name, number in ((n, -c - 1) for n, c in CHECKED.items())}
    spans: dict[int, list[tuple[int, int]]] = {}
    checks = file.table(CHECKS)
    for data, row, count, expected, _ in checks.tolist():
        name = names[data] if data < 0 else contents.log.data[file.number, data + before].name
        first = row
        if row < 0:
            name, first = LATE, -1 - row
        assert checksum(file.rows(name, first, count)) == expected, (name, row, count)
        spans.setdefault(data, []).append((first, first + count))
    if covered:
        records = contents.records
        for prefix in ("", "transformed_"):
            here = (records[prefix + "segment"] == file.number) & (records[prefix + "data"] >= 0)
            for number in np.unique(records[prefix + "data"][here]).tolist():
                at = records[prefix + "row"][here & (records[prefix + "data"] == number)]
                info = contents.log.data[file.number, number]
                if 0 in info.shape:
                    continue
                found = np.zeros(len(at), bool)
                for start, stop in spans.get(number - before, []):
                    place = np.where(at < 0, -1 - at, at)
                    found |= (start <= place) & (place < stop)
                assert found.all(), (info, at[~found])
    return len(checks)
