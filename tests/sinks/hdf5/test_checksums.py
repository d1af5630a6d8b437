"""Checksums see any change, and counters survive a write that was cut short."""

import numpy as np
import pytest

from fastrec.sinks.hdf5.checksums import (
    MIN_THREADED_BYTES,
    PAGE_BYTES,
    ChecksumWorker,
    Counters,
    add_checksum,
    checksum,
    read_counters,
    strip_checksum,
)

SIZES = [0, 1, 7, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 3 * PAGE_BYTES, MIN_THREADED_BYTES + 5]


@pytest.mark.parametrize("size", SIZES)
def test_any_change_of_a_byte_changes_the_checksum(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    original = checksum(data)
    for place in {0, size // 2, size - 1} if size else ():
        for bit in (0, 7):
            data[place] ^= 1 << bit
            assert checksum(data) != original
            data[place] ^= 1 << bit
    assert checksum(data) == original
    if size >= 3 * PAGE_BYTES:  # pages that changed places
        first, second, rest = data[:PAGE_BYTES], data[PAGE_BYTES : 2 * PAGE_BYTES], data[2 * PAGE_BYTES :]
        assert checksum(np.concatenate([second, first, rest])) != original


@pytest.mark.parametrize("size", [10, MIN_THREADED_BYTES])
def test_checksums_of_another_thread_are_the_same_and_so_are_its_errors(size: int) -> None:
    worker, done = ChecksumWorker(), []
    parts = [np.arange(size, dtype=np.uint8), np.ones(3, np.uint8)]
    assert worker.checksums(parts, lambda: done.append("written")) == [checksum(part) for part in parts]
    assert done == ["written"]
    with pytest.raises(TypeError):
        worker.checksums([parts[0], np.full(PAGE_BYTES + 1, None)], lambda: None)
    worker.close()


def test_a_line_whose_checksum_does_not_fit_is_not_read() -> None:
    line = add_checksum(b'["site",0,{}]')
    assert strip_checksum(line.rstrip(b"\n")) == b'["site",0,{}]'
    assert strip_checksum(line.replace(b"site", b"sita").rstrip(b"\n")) is None
    assert strip_checksum(line[:12]) is None and strip_checksum(b"") is None


def test_the_counters_that_were_written_last_count() -> None:
    first, second = Counters(1, 2).row(4), Counters(3, 4, closed=True).row(5)
    assert read_counters(np.concatenate([first, second])) == Counters(3, 4, True)
    second[10] ^= 1
    assert read_counters(np.concatenate([first, second])) == Counters(1, 2)
    assert read_counters(np.zeros_like(np.concatenate([first, second]))) is None
