"""Files that somebody made, and things that are no files: no crash, no wait, and nothing of another file."""

import errno
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec._errors import DamagedFileError, FastrecError, OptionError, RecordingFileError
from fastrec.files import merge, verify
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5.merged import MERGED, is_near
from fastrec.sinks.hdf5.open_files import MAX_OPEN
from tests.sinks.hdf5.test_hostile import index_in, with_index

MODEL = torch.nn.Identity()


def record(path: Path, passes: int = 8, **options: Any) -> None:
    with Recorder(MODEL, keep_module=True, sink=HDF5Sink(path, **options)) as rec:
        for i in range(passes):
            MODEL(torch.full((4,), float(i)))
            rec.step(number=i)


def read(path: Path) -> str:
    """Read a file in a process of its own, which may crash: what it says."""
    code = (
        "import sys, fastrec\ntry:\n    print(fastrec.load(sys.argv[1]).stack('module:').tolist())\n"
        "except fastrec.FastrecError as error:\n    print(type(error).__name__, error)"
    )
    root = str(Path(fastrec.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": root},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
    )
    assert done.returncode == 0, done
    return done.stdout


def with_data_set(path: Path, **options: Any) -> None:
    """Put another data set in the place of the values; the trailer says "compressed", and vouches for nothing."""
    index, _ = index_in(path.read_bytes())
    name = next(name for name in index["sets"] if name.startswith("data/"))
    with h5py.File(path, "r+") as file:
        attributes = dict(file[name].attrs)
        del file[name]
        link = options.pop("link", None)
        if link is not None:
            file[name] = link
        else:
            file.create_dataset(name, **options).attrs.update(attributes)
    index["sets"][name].update(packed=True, chunk_rows=index["sets"][name]["rows"], offsets=[], sizes=[])
    index.pop("structure")
    path.write_bytes(with_index(index, path.read_bytes()))


SHOWN = {
    "longer strings": {"shape": (8, 4), "dtype": "S4000", "chunks": (8, 4), "compression": "gzip"},
    "longer numbers": {"shape": (8, 4), "dtype": "f8", "chunks": (8, 4), "compression": "gzip"},
    "strings of any length": {"shape": (8, 4), "dtype": h5py.string_dtype(), "chunks": (8, 4)},
    "references": {"shape": (8, 4), "dtype": h5py.ref_dtype, "chunks": (8, 4)},
    "another shape": {"shape": (8, 400), "dtype": "f4", "chunks": (8, 400), "compression": "gzip"},
    "big-endian": {"shape": (8, 4), "dtype": ">f4", "chunks": (8, 4), "compression": "gzip"},
    "large chunks": {
        "shape": (8, 4),
        "dtype": "f4",
        "chunks": (1 << 28, 4),
        "maxshape": (None, 4),
        "compression": "gzip",
    },
    "an external link": {"link": h5py.ExternalLink("other.h5", "values")},
    "a soft link": {"link": h5py.SoftLink("/passes")},
}


@pytest.mark.parametrize("what", SHOWN)
def test_a_data_set_that_is_not_what_the_index_says_is_an_error(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run.h5"
    record(path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["values"] = np.zeros((8, 4), "f4")
    with_data_set(path, **SHOWN[what])
    assert read(path).startswith("DamagedFileError")


def test_external_storage_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    record(path)
    with_data_set(path, shape=(8, 4), dtype="f4", external=[("/etc/passwd", 0, 128)])
    assert read(path).startswith("DamagedFileError")


@pytest.mark.parametrize("relative", ["/etc/passwd", "../../../etc/passwd", "../../run.h5", "..", "a/../../../b.h5"])
def test_a_merged_file_shows_only_what_is_near(tmp_path: Path, relative: str) -> None:
    for rank in range(2):
        record(tmp_path / f"{rank}.h5")
    merge([tmp_path / "0.h5", tmp_path / "1.h5"], tmp_path / "run.h5", virtual=True)
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        shown = json.loads(file["sources"][:].tobytes())
        shown[0]["path"] = relative
        del file["sources"]
        file["sources"] = np.frombuffer(json.dumps(shown).encode(), np.uint8)
    for use in (fastrec.load, verify, fastrec.recover):
        with pytest.raises(DamagedFileError, match=f"run.h5' names '{relative}' as a recording that it shows"):
            use(tmp_path / "run.h5")
    assert not is_near(relative)


def test_a_merged_file_is_written_only_near_to_what_it_shows(tmp_path: Path) -> None:
    for folder in ("a/b/c", "d"):
        (tmp_path / folder).mkdir(parents=True)
    record(tmp_path / "d" / "run.h5")
    with pytest.raises(OptionError, match=r"in a folder beside it, and '../../../d/run.h5' is none of these; write it"):
        merge([tmp_path / "d" / "run.h5"], tmp_path / "a" / "b" / "c" / "whole.h5", virtual=True)
    merge([tmp_path / "d" / "run.h5"], tmp_path / "a" / "whole.h5", virtual=True)
    assert len(fastrec.load(tmp_path / "a" / "whole.h5")) == 8
    assert MERGED < 0


def put(kind: str, path: Path) -> None:
    """Something that is not a regular file."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))


ODD = ("fifo", "folder", "loop", "device", "socket")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["run.h5", "run.00000.h5", "run.00000.h5.tmp", "run.00000.h5.tmp.map"])
def test_what_is_no_regular_file_is_an_error(killed: Path, tmp_path: Path, kind: str, name: str,
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for path in killed.parent.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    put(kind, tmp_path / name)
    for use in (fastrec.load, verify, fastrec.recover, lambda path: fastrec.load(path, live=True), record):
        with pytest.raises(FastrecError):
            use(Path("run.h5"))


@pytest.mark.parametrize("kind", ["link", *ODD])
@pytest.mark.parametrize("name", ["run.h5.part", "run.00000.h5.part", "run.00000.h5.tmp.map.part", "copy.h5.part"])
def test_nothing_is_written_through_what_lies_in_the_place_of_a_temporary_file(
    killed: Path, tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in killed.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "precious.h5").write_bytes(b"precious")
    if kind == "link":
        (tmp_path / name).symlink_to("precious.h5")
    else:
        put(kind, tmp_path / name)
    try:
        fastrec.recover("run.h5")
        fastrec.recover("run.h5", to="copy.h5")
    except FastrecError as error:
        assert kind == "folder" and "in the way" in str(error)
    else:
        assert fastrec.load("run.h5").n_passes == fastrec.load("copy.h5").n_passes == 20
    assert (tmp_path / "precious.h5").read_bytes() == b"precious"


def test_a_link_to_a_recording_of_several_files_opens_it(tmp_path: Path) -> None:
    (tmp_path / "long").mkdir()
    record(tmp_path / "long" / "run.h5")
    record(tmp_path / "long" / "run.h5", append=True)
    (tmp_path / "latest.h5").symlink_to("long/run.h5")
    assert fastrec.load(tmp_path / "latest.h5").stack("module:").shape == (16, 4)
    assert verify(tmp_path / "latest.h5").damage == []
    with Recorder(MODEL, keep_module=True, sink=tmp_path / "long" / "grows.h5") as rec:
        MODEL(torch.zeros(4))
        rec.flush()
        (tmp_path / "growing.h5").symlink_to("long/grows.h5")
        live = fastrec.load(tmp_path / "growing.h5", live=True)
        assert (live.n_passes, live.state) == (1, "growing")


def test_more_files_may_be_read_than_may_be_open(tmp_path: Path) -> None:
    record(tmp_path / "part.h5", passes=2)
    content = (tmp_path / "part.h5").read_bytes()
    for i in range(MAX_OPEN + 20):
        (tmp_path / f"{i}.h5").write_bytes(content)
    before = len(os.listdir("/proc/self/fd"))
    many = [fastrec.load(tmp_path / f"{i}.h5") for i in range(MAX_OPEN + 20)]
    assert len(os.listdir("/proc/self/fd")) - before <= MAX_OPEN
    assert all(recording.stack("module:")[1].tolist() == [1] * 4 for recording in many)
    os.replace(tmp_path / "part.h5", tmp_path / f"{MAX_OPEN + 19}.h5")
    with pytest.raises(DamagedFileError, match="was replaced by another file since the recording was loaded"):
        many[-1].stack("module:")
    del many
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_descriptor_left_is_an_error_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "run.h5")

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("fastrec.sinks.hdf5.paths.os.open", refuse)
    with pytest.raises(RecordingFileError, match="as many files open as it may.*ulimit -n"):
        fastrec.load(tmp_path / "run.h5")


def test_a_file_of_holes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    record(path)
    index, body = index_in(path.read_bytes())
    with open(path, "r+b") as file:
        file.truncate(1 << 40)
    index["sets"]["log"].update(rows=1 << 39, chunk_rows=1 << 39, offsets=[len(body)])
    with open(path, "ab") as file:
        file.write(with_index(index, b""))
    assert read(path).startswith("DamagedFileError")


def test_deep_nesting_in_an_index_is_an_error(tmp_path: Path) -> None:
    record(tmp_path / "run.h5")
    deep: Any = msgspec.Raw(b"[" * 100_000 + b"]" * 100_000)
    index, body = index_in((tmp_path / "run.h5").read_bytes())
    text = msgspec.json.encode({**index, "x": deep})
    entry = b"%08x %s\n" % (zlib.crc32(text), text)
    (tmp_path / "run.h5").write_bytes(body + entry + struct.pack("<Q8s", len(entry), b"fastrec"))
    with pytest.raises(DamagedFileError):
        fastrec.load(tmp_path / "run.h5")


def test_a_merged_file_is_not_called_damaged_by_recover(tmp_path: Path) -> None:
    for rank in range(2):
        record(tmp_path / f"{rank}.h5")
    merge([tmp_path / "0.h5", tmp_path / "1.h5"], tmp_path / "run.h5", virtual=True)
    recovered = fastrec.recover(tmp_path / "run.h5")
    assert (recovered.passes, recovered.records, recovered.steps, recovered.lost) == (16, 16, 16, "nothing")
    with pytest.raises(OptionError, match="shows other recordings and is whole; fastrec.files.repack copies all of"):
        fastrec.recover(tmp_path / "run.h5", to=tmp_path / "copy.h5")
