"""Addresses and extents: from rows to their places in a file and back."""

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fastrec._errors import DamagedFileError
from fastrec.sinks.hdf5.layout import (
    OVERFLOW,
    Addresses,
    DatasetExtent,
    FileAddress,
    RowRun,
    read_rows,
    run_edges,
    write_rows,
)


@pytest.mark.parametrize(
    ("address", "number"),
    [
        (FileAddress("data/relu", 0), 0),
        (FileAddress("data/relu", 7), 7),
        (FileAddress(OVERFLOW, 0), -1),
        (FileAddress(OVERFLOW, 64), -65),
    ],
)
def test_an_address_is_one_number_on_the_disk(address: FileAddress, number: int) -> None:
    assert address.encode() == number
    assert FileAddress.decode(number, "data/relu") == address


def test_many_addresses_are_those_of_each() -> None:
    rows, in_overflow = np.array([3, 0, 128, 9]), np.array([False, True, True, False])
    addresses = Addresses.of(rows, in_overflow)
    decoded = [FileAddress.decode(number, "data/x") for number in addresses.encoded.tolist()]
    assert decoded == [("data/x", 3), (OVERFLOW, 0), (OVERFLOW, 128), ("data/x", 9)]
    assert addresses.in_overflow.tolist() == in_overflow.tolist()
    assert (addresses.rows.tolist(), addresses.overflow_bytes.tolist()) == ([3, 9], [0, 128])
    assert addresses[1:3].overflow_bytes.tolist() == [0, 128] and len(addresses[1:3]) == 2


def test_a_run_of_rows_goes_by_rows_or_by_bytes() -> None:
    assert RowRun("data/x", 10, 1).address(5) == ("data/x", 15)
    assert RowRun(OVERFLOW, 64, 12).address(5) == (OVERFLOW, 124)


def test_rows_go_to_their_chunks_and_come_back(tmp_path: Path) -> None:
    extent = DatasetExtent(row_bytes=4, rows=10, chunk_rows=3, offsets=[1000, 0, 500, 200])
    rows = np.arange(28, dtype=np.uint8).reshape(7, 4)
    descriptor = os.open(tmp_path / "x", os.O_CREAT | os.O_RDWR)
    try:
        write_rows(descriptor, extent, 2, rows)
        assert extent.pieces(2, 7) == [(1008, 0, 4), (0, 4, 16), (500, 16, 28)]
        assert read_rows(descriptor, extent, 2, 7).tolist() == rows.reshape(-1).tolist()
        assert os.pread(descriptor, 12, 0) == rows[1:4].tobytes()
        with pytest.raises(DamagedFileError, match="rows 8 to 11 were asked for, but there are 10"):
            read_rows(descriptor, extent, 8, 3)
        os.ftruncate(descriptor, 505)
        with pytest.raises(DamagedFileError, match="the file ends before its data does"):
            read_rows(descriptor, extent, 2, 7)
    finally:
        os.close(descriptor)


def test_a_compressed_extent_has_the_name_that_files_have_for_it() -> None:
    extent = DatasetExtent(4, 10, 10, [100], compressed=True, sizes=[17])
    text = msgspec.json.encode(extent)
    assert b'"packed":true' in text and b"compressed" not in text
    assert msgspec.json.decode(text, type=DatasetExtent) == extent
    assert extent.chunks() == [(100, 117)]


def test_stretches_of_equal_numbers() -> None:
    assert run_edges(np.array([4, 4, 1, 4, 4, 4])).tolist() == [0, 2, 3, 6]
    assert run_edges(np.array([4, 4])).tolist() == [0, 2]
    assert run_edges(np.array([])).tolist() == [0, 0]
