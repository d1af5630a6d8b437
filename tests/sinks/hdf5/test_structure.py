"""Damage to the structure, which only HDF5 reads, is an error before HDF5 sees it; compression; other tools."""

import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec._errors import DamagedFileError, MissingExtraError
from fastrec.files import merge, verify
from fastrec.sinks import HDF5Sink, RAMSink
from fastrec.sinks.hdf5.structure import _outside_chunks, add_trailer, open_verified, read_trailer
from tests.sinks.hdf5.verified import check_checksums

MODEL = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.Tanh())
DAMAGED = "is damaged: its structure is not the one that was written"


def record(path: Path, **options: Any) -> Path:
    with Recorder(MODEL, keep_op=True, sink=HDF5Sink(path, **options)) as rec:
        for i in range(20):
            MODEL(torch.full((2 + i % 2, 3), float(i)))
            rec.step(reward=float(i))
    return path


def structure(path: Path) -> list[int]:
    """The places of the bytes of a file that are not rows, zeros left out."""
    data = path.read_bytes()
    with path.open("rb") as file:
        index = read_trailer(file.fileno())
    assert index is not None and index.structure is not None
    end = len(data) - 16 - int.from_bytes(data[-16:-8], "little")
    return [place for start, stop in _outside_chunks(index, end) for place in range(start, stop) if data[place]]


def each_change(path: Path, check: Callable[[], None], times: int = 25) -> None:
    """Check with one byte of the structure changed, many times."""
    whole, places = path.read_bytes(), structure(path)
    for place in [places[0], places[-1], *Random(0).sample(places, times)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        check()
    path.write_bytes(whole)


def test_damage_to_a_compressed_file_is_an_error_where_values_are_read(tmp_path: Path) -> None:
    path = record(tmp_path / "run.h5", compression="gzip")

    def check() -> None:
        recording = fastrec.load(path)  # passes and steps are not compressed
        assert recording.n_passes == 20 and recording.steps["reward"].tolist() == list(range(20))
        with pytest.raises(DamagedFileError, match=DAMAGED):
            recording.select(batch=2).stack("tanh_1")
        blocks = verify(path).damage
        assert blocks and all(DAMAGED in block.why for block in blocks)

    each_change(path, check)
    assert not verify(path).damage


def test_damage_to_a_file_that_shows_others_is_an_error(tmp_path: Path) -> None:
    for rank in range(2):
        record(tmp_path / f"run.{rank}.h5")
    path = Path(merge([tmp_path / "run.0.h5", tmp_path / "run.1.h5"], tmp_path / "run.h5", virtual=True).path)

    def check() -> None:
        for use in (fastrec.load, verify):
            with pytest.raises(DamagedFileError, match=DAMAGED):
                use(path)

    each_change(path, check)
    assert fastrec.load(path).n_passes == 40


def test_a_file_that_is_damaged_is_not_shown(tmp_path: Path) -> None:
    path = record(tmp_path / "run.h5")
    record(path, append=True)
    whole = fastrec.load(path).select(batch=2).stack("tanh_1")

    def check() -> None:
        assert torch.equal(fastrec.load(path).select(batch=2).stack("tanh_1"), whole)  # fastrec reads it all the same
        with pytest.raises(DamagedFileError, match=DAMAGED):
            fastrec.recover(path, to=tmp_path / "to" / "run.h5")
        for left in (tmp_path / "to").iterdir():
            left.unlink()

    (tmp_path / "to").mkdir()
    each_change(tmp_path / "run.00000.h5", check)


def test_the_room_that_was_not_used_is_no_part_of_it(tmp_path: Path) -> None:
    """A copy in which holes became zeros is as good as the original."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(5)
    with path.open("ab") as file:
        file.truncate(64 << 20)
        file.seek(100 << 20)
        file.write(b"end")
    with record(tmp_path / "run.h5").open("rb") as file:
        index = read_trailer(file.fileno())
    assert index is not None
    add_trailer(str(path), msgspec.structs.replace(index, sets={}))
    assert path.stat().st_blocks * 512 < 1 << 20
    (tmp_path / "copy.h5").write_bytes(path.read_bytes())
    for name in ("x.h5", "copy.h5"):
        with open_verified(str(tmp_path / name)) as file:
            assert file["x"][:].tolist() == list(range(5))
    with (tmp_path / "copy.h5").open("r+b") as file:
        file.seek(50 << 20)
        file.write(b"x")
    with pytest.raises(DamagedFileError, match=DAMAGED):
        open_verified(str(tmp_path / "copy.h5"))


@pytest.mark.parametrize("compression", ["gzip", "gzip:9", "lzf", "zstd", "zstd:7", "lz4"])
def test_compressed_files_are_smaller_and_read_the_same(tmp_path: Path, compression: str) -> None:
    if compression.startswith(("zstd", "lz4")):
        pytest.importorskip("hdf5plugin")
    plain, compressed = HDF5Sink(tmp_path / "plain.h5"), HDF5Sink(tmp_path / "less.h5", compression=compression)
    small = HDF5Sink(tmp_path / "small.h5", compression=compression, segment_bytes=1 << 20, flush_seconds=0.01)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    with Recorder(model, keep_op=True, sink=[RAMSink(), plain, compressed, small]) as rec:
        for i in range(100):
            model(torch.ones(4 + i % 2, 64) * i)
            rec.step(number=i)
    for sink in (compressed, small):
        recording = fastrec.load(sink.path)
        assert all(
            torch.equal(record.activation, in_ram.activation)  # type: ignore[arg-type]
            for record, in_ram in zip(recording, rec.recording, strict=True)
        )
        assert recording.steps["number"].tolist() == list(range(100))
        check_checksums(Path(sink.path))
    assert (tmp_path / "less.h5").stat().st_size < 0.8 * (tmp_path / "plain.h5").stat().st_size
    with h5py.File(compressed.path) as file:
        assert all(data_set.id.get_create_plist().get_nfilters() for data_set in file["data"].values())


def test_a_compressed_file_whose_filter_is_missing_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path / "run.h5", compression="gzip")

    def fails(*_: object, **__: object) -> Any:
        raise OSError("required filter 'zstd' is not registered")

    monkeypatch.setattr("fastrec.sinks.hdf5.structure.h5py.File", fails)
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(MissingExtraError, match=r"needs hdf5plugin, which is not installed.*fastrec-torch\[zstd\]"):
        _ = [kept.activation for kept in fastrec.load(tmp_path / "run.h5")]
