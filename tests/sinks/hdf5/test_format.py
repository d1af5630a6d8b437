"""Files do not change: those of earlier versions read the same, and what is written today is laid out as then.

``data/recordings.zip`` holds recordings of an earlier version, and what that version read from them. No name on the
disk may change with the names in the code.
"""

import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import pytest

import fastrec
from fastrec.files import verify
from tests.sinks.hdf5 import recordings
from tests.sinks.hdf5.recordings import RECORDINGS

ARCHIVE = Path(__file__).parent / "data" / "recordings.zip"
TIMES = ("started", "duration", "time", "checksum")

each_recording = pytest.mark.parametrize("name", RECORDINGS)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    with zipfile.ZipFile(ARCHIVE) as whole:
        whole.extractall(folder)
    return folder


@each_recording
def test_recordings_of_earlier_versions_read_the_same(archive: Path, name: str) -> None:
    path = archive / name / "run.h5"
    expected = json.loads((archive / name / "contents.json").read_text())
    assert expected["records"]
    assert recordings.contents(fastrec.load(path)) == expected
    found = verify(path)
    assert (found.damage, found.checksums >= 5) == ([], True)


def test_a_recording_that_an_earlier_version_left_is_recovered(archive: Path, tmp_path: Path) -> None:
    expected = json.loads((archive / "killed" / "contents.json").read_text())
    fastrec.recover(archive / "killed" / "run.h5", to=tmp_path / "run.h5")
    assert recordings.contents(fastrec.load(tmp_path / "run.h5")) == expected


@each_recording
def test_recordings_are_written_as_by_earlier_versions(archive: Path, tmp_path: Path, name: str) -> None:
    assert recordings.make(name, tmp_path) == json.loads((archive / name / "contents.json").read_text())
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path.name for path in (archive / name).iterdir() if path.suffix != ".json")
    for file in written:
        new, old = tmp_path / file, archive / name / file
        assert index_of(new) == index_of(old)
        if new.suffix != ".map":
            assert_same_file(new, old)


def test_two_files_that_differ_are_told_apart(archive: Path) -> None:
    plain, other = archive / "plain" / "run.h5", archive / "continued" / "run.00000.h5"
    assert index_of(plain) != index_of(other)
    with pytest.raises(AssertionError):
        assert_same_file(plain, other)


def assert_same_file(new: Path, old: Path) -> None:
    """The same data sets with the same attributes, types and rows, but for times and what stands for a run."""
    with h5py.File(new, "r") as new_file, h5py.File(old, "r") as old_file:
        assert attributes(new_file) == attributes(old_file)
        names = data_sets(new_file)
        assert names == data_sets(old_file)
        for name in names:
            new_data, old_data = new_file[name], old_file[name]
            for fact in ("compression", "shuffle", "is_virtual"):
                assert getattr(new_data, fact) == getattr(old_data, fact), fact
            assert attributes(new_data) == attributes(old_data)
            assert new_data.id.get_type().equal(old_data.id.get_type())
            if name == "log":
                assert log_lines(new_data) == log_lines(old_data)
            elif name == "sources":
                assert normalised(json.loads(new_data[:].tobytes())) == normalised(json.loads(old_data[:].tobytes()))
            else:
                assert (new_data.shape, new_data.chunks, new_data.maxshape) == (
                    old_data.shape,
                    old_data.chunks,
                    old_data.maxshape,
                )
                assert rows(new_data) == rows(old_data), name


def data_sets(file: Any) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def attributes(item: Any) -> dict[str, Any]:
    return {name: value for name, value in item.attrs.items() if name not in ("run", "pid")}


def rows(data_set: Any) -> Any:
    values = data_set[:]
    if data_set.name == "/checks":
        of_values = values["data"] >= 0  # the others are of rows that hold times
        assert of_values.sum() >= 1
        return values[["data", "row", "count", "ok"]].tolist(), values["checksum"][of_values].tolist()
    if data_set.name == "/counters":
        return max(values[["written", "empty", "begun", "closed"]].tolist())[1:]  # those that were written last
    if values.dtype.names:
        fields = [name for name in values.dtype.names if name not in TIMES]
        return [values[name].tobytes() for name in fields]
    return values.tobytes()


def log_lines(log: Any) -> list[Any]:
    lines = []
    for line in log[:].tobytes().split(b"\n"):
        if len(line) < 10 or b"%08x" % zlib.crc32(line[9:]) != line[:8]:
            break
        lines.append(normalised(json.loads(line[9:])))
    assert len(lines) > 5
    return lines


def index_of(path: Path) -> Any:
    """The line of JSON beside a growing file, or behind the end of a finished one: without the places in the file."""
    data = path.read_bytes()
    if path.suffix == ".tmp":
        return None
    if path.suffix != ".map":
        length, mark = struct.unpack("<Q8s", data[-16:])
        assert mark == b"fastrec\0"
        data = data[-16 - length : -16]
    text = data.rstrip(b"\n")
    assert b"%08x" % zlib.crc32(text[9:]) == text[:8]
    index = normalised(json.loads(text[9:]))
    assert isinstance(index["structure"], int | None)
    del index["structure"]
    for extent in index["sets"].values():
        for key in {"offsets", "sizes"} & extent.keys():
            extent[key] = len(extent[key])
    index["sets"].get("log", {}).pop("rows", None)  # the header names the version of torch
    index["sets"].get("log", {}).pop("chunk_rows", None)
    return index


def normalised(content: Any) -> Any:
    """JSON without what differs from run to run and from machine to machine."""
    if isinstance(content, dict):
        return {
            key: None if key in ("run", "pid", "began", *TIMES, "torch", "predicate") else normalised(value)
            for key, value in content.items()
            if key != "process"  # which earlier versions did not write
        }
    if isinstance(content, list):
        return [normalised(value) for value in content]
    if isinstance(content, str):
        return content.replace("__main__.", "tests.sinks.hdf5.recordings.")
    return content
