"""Files that are none, or not all of one: a typed error, never a crash, never a value that was not recorded."""

import shutil
import zlib
from pathlib import Path
from random import Random

import h5py
import msgspec
import numpy as np
import pytest
import torch

import fastrec
from fastrec import FastrecError, Recorder
from fastrec._errors import (
    DamagedFileError,
    RecordingExistsError,
    RecordingFileError,
    RecordingNotFoundError,
)
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5.layout import SegmentIndex
from tests.sinks.hdf5.twenty import read_all, record_twenty


def refused_or_read(path: Path) -> bool:
    try:
        read_all(path)
    except FastrecError:
        return False
    return True


def test_a_file_that_is_cut_off_is_an_error(finished: Path, tmp_path: Path) -> None:
    whole, path = finished.read_bytes(), tmp_path / "cut.h5"
    for size in (0, 1, 100, 2048, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedFileError, match="can't be opened as HDF5|end of the file|ends before"):
            read_all(path)


def test_a_growing_file_that_is_cut_off_is_an_error(killed: Path, tmp_path: Path) -> None:
    for name in killed.parent.iterdir():
        shutil.copyfile(name, tmp_path / name.name)
    with (tmp_path / "run.00000.h5.tmp").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(DamagedFileError, match="past the end of the file"):
        read_all(tmp_path / "run.h5")
    with pytest.raises(DamagedFileError, match="past the end of the file"):
        fastrec.recover(tmp_path / "run.h5")


def test_flipped_bits_are_an_error_or_harmless(finished: Path, killed: Path, tmp_path: Path) -> None:
    random = Random(0)
    whole, mapped = finished.read_bytes(), (killed.parent / "run.00000.h5.tmp.map").read_bytes()
    shutil.copyfile(killed.parent / "run.00000.h5.tmp", tmp_path / "grow.00000.h5.tmp")
    outcomes = set()
    for _ in range(150):
        for original, path, name in (
            (whole, tmp_path / "flipped.h5", tmp_path / "flipped.h5"),
            (mapped, tmp_path / "grow.00000.h5.tmp.map", tmp_path / "grow.h5"),
        ):
            data = bytearray(original)
            for _ in range(random.choice([1, 1, 30])):
                # Without the mark at its end it would be up to HDF5 itself what becomes of a damaged file.
                data[random.randrange(len(data) - 16)] ^= 1 << random.randrange(8)
            path.write_bytes(data)
            outcomes.add(refused_or_read(name))
    assert outcomes == {True, False}


def test_rows_that_make_no_sense_are_an_error(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.h5"
    changes = [
        ("passes", "count", 1 << 60),
        ("passes", "count", -1),
        ("passes", "phase", 99),
        ("passes", "outcome", 77),
        ("passes", "ok", 0),
        ("records", "variant", -2),
        ("records", "variant", 1 << 30),
        ("records", "data", 12345),
        ("records", "segment", 5),
        ("records", "row", 1 << 40),
        ("records", "row", -(1 << 40)),
        ("marks", "data", 0),
        ("marks", "row", 1 << 50),
    ]
    for table, field, value in changes:
        shutil.copyfile(finished, path)
        with h5py.File(path, "r+") as file:
            rows = file[table][:]
            rows[field][3] = value
            file[table][:] = rows
        with pytest.raises(DamagedFileError):
            read_all(path)


def test_files_of_other_programs_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(DamagedFileError, match="not a recording of fastrec"):
        fastrec.load(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DamagedFileError, match="can't be opened as HDF5"):
        fastrec.load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(RecordingFileError, match="it is not a regular file"):
        fastrec.load(path)


def test_a_newer_version_is_an_error(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "newer.h5"
    shutil.copyfile(finished, path)
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 99
    with pytest.raises(DamagedFileError, match="has version 99; this fastrec reads 1"):
        fastrec.load(path)


def test_a_missing_segment_is_an_error(tmp_path: Path) -> None:
    sink = HDF5Sink(tmp_path / "run.h5", segment_bytes=1 << 20)
    with Recorder(torch.nn.Identity(), keep_module=True, sink=sink) as rec:
        for i in range(9):
            rec.log(torch.full((300_000,), float(i)))
            rec.flush()  # what waits together may go into one segment
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0] == "run.00000.h5" and len(names) >= 2
    assert fastrec.load(tmp_path / "run.h5").stack("module:")[:, 0].tolist() == list(range(9))
    (tmp_path / "run.00000.h5").unlink()
    with pytest.raises(DamagedFileError, match="segment 0 of .* is missing"):
        fastrec.load(tmp_path / "run.h5")


def test_nothing_is_written_over(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    shutil.copyfile(finished, path)
    with pytest.raises(RecordingExistsError, match=r"run.h5' exists; give another path, or HDF5Sink\(.*overwrite=True"):
        record_twenty(HDF5Sink(path))
    assert path.read_bytes() == finished.read_bytes()
    first = record_twenty(HDF5Sink(path, overwrite=True))
    with pytest.raises(RecordingExistsError, match="run.00000.h5.tmp' exists"):
        record_twenty(HDF5Sink(path))
    first.__exit__(None, None, None)
    with pytest.raises(RecordingExistsError, match="exists; give another path to recover to"):
        fastrec.recover(path, to=path)


def test_what_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingNotFoundError, match="there is no recording at '.*run.h5'"):
        fastrec.load(tmp_path / "run.h5")
    rec = record_twenty(HDF5Sink(tmp_path / "run.h5", flush_seconds=1000))
    with pytest.raises(RecordingNotFoundError, match="has only begun, and nothing was flushed yet"):
        fastrec.load(tmp_path / "run.h5")
    rec.__exit__(None, None, None)


def test_a_session_that_only_writes_a_file_reads_what_it_wrote(tmp_path: Path) -> None:
    rec = record_twenty(HDF5Sink(tmp_path / "run.h5", flush_seconds=1000))
    assert rec.recording.n_passes == 20
    rec.__exit__(None, None, None)
    assert rec.recording.n_passes == 20


def test_the_map_is_plain_json(killed: Path) -> None:
    text = (killed.parent / "run.00000.h5.tmp.map").read_bytes()
    assert msgspec.json.decode(text[9:], type=SegmentIndex).segment == 0


def test_a_log_that_names_what_is_no_dtype(tmp_path: Path, finished: Path) -> None:
    for old, new in ((b'"dtype":"float32"', b'"dtype":"float1"'), (b'"<f8"', b'"|O"')):
        path = tmp_path / "run.h5"
        path.write_bytes(with_log_line(finished.read_bytes(), old, new))
        with pytest.raises(DamagedFileError, match="is not a dtype of this version of torch|are not numbers"):
            read_all(path)


def with_log_line(content: bytes, old: bytes, new: bytes) -> bytes:
    """The same file with other words in the log, and checksums that fit; the last line that has them is changed."""
    position = content.rindex(old, 0, content.rindex(b'"sample"'))
    start, stop = content.rindex(b"\n", 0, position) + 1, content.index(b"\n", position)
    text = content[start + 9 : stop].replace(old, new).ljust(stop - start - 9)
    return content[:start] + b"%08x %s" % (zlib.crc32(text), text) + content[stop:]
