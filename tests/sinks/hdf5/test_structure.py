"""Files whose rows are whole and whose structure, which only HDF5 reads, is not: told, and HDF5 is not asked."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec._errors import DamagedFileError
from fastrec.files import merge, verify
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5.structure import _outside_chunks as _outside, add_trailer, open_verified as opened_file, read_trailer

MODEL = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.Tanh())
TOLD = "is damaged: its structure is not the one that was written"


def record(path: Path, **options: Any) -> Path:
    with Recorder(MODEL, keep_op=True, sink=HDF5Sink(path, **options)) as rec:
        for i in range(20):
            MODEL(torch.full((2 + i % 2, 3), float(i)))
            rec.step(reward=float(i))
    return path


def structure(path: Path) -> list[int]:
    """The bytes of a file that are no rows, zeros left out."""
    data = path.read_bytes()
    with path.open("rb") as file:
        found = read_trailer(file.fileno())
    assert found is not None and found.structure is not None
    end = len(data) - 16 - int.from_bytes(data[-16:-8], "little")
    return [at for start, stop in _outside(found, end) for at in range(start, stop) if data[at]]


def each_change(path: Path, check: Callable[[], None], times: int = 25) -> None:
    """Check with one byte of the structure changed, many times."""
    whole, places = path.read_bytes(), structure(path)
    for at in [places[0], places[-1], *Random(0).sample(places, times)]:
        made = bytearray(whole)
        made[at] ^= 1 << at % 8
        path.write_bytes(made)
        check()
    path.write_bytes(whole)


def test_a_compressed_file_tells_it_where_values_are_read(tmp_path: Path) -> None:
    path = record(tmp_path / "run.h5", compression="gzip")

    def check() -> None:
        recording = fastrec.load(path)  # passes and steps are not compressed
        assert recording.n_passes == 20 and recording.steps["reward"].tolist() == list(range(20))
        with pytest.raises(DamagedFileError, match=TOLD):
            recording.select(batch=2).stack("tanh_1")
        found = verify(path).damage
        assert found and all(TOLD in damage.why for damage in found)

    each_change(path, check)
    assert not verify(path).damage


def test_a_file_that_shows_others_tells_it(tmp_path: Path) -> None:
    for rank in range(2):
        record(tmp_path / f"run.{rank}.h5")
    path = Path(merge([tmp_path / "run.0.h5", tmp_path / "run.1.h5"], tmp_path / "run.h5", virtual=True).path)

    def check() -> None:
        for use in (fastrec.load, verify):
            with pytest.raises(DamagedFileError, match=TOLD):
                use(path)

    each_change(path, check)
    assert fastrec.load(path).n_passes == 40


def test_what_would_be_shown_tells_it(tmp_path: Path) -> None:
    path = record(tmp_path / "run.h5")
    record(path, append=True)
    whole = fastrec.load(path).select(batch=2).stack("tanh_1")

    def check() -> None:
        assert torch.equal(fastrec.load(path).select(batch=2).stack("tanh_1"), whole)  # fastrec reads it all the same
        with pytest.raises(DamagedFileError, match=TOLD):
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
    found = read_trailer(os.open(record(tmp_path / "run.h5"), os.O_RDONLY))
    assert found is not None
    add_trailer(str(path), type(found)(found.format, found.version, found.identity, {}))
    assert path.stat().st_blocks * 512 < 1 << 20
    (tmp_path / "copy.h5").write_bytes(path.read_bytes())
    for name in ("x.h5", "copy.h5"):
        with opened_file(str(tmp_path / name)) as file:
            assert file["x"][:].tolist() == list(range(5))
    with (tmp_path / "copy.h5").open("r+b") as file:
        file.seek(50 << 20)
        file.write(b"x")
    with pytest.raises(DamagedFileError, match=TOLD):
        opened_file(str(tmp_path / "copy.h5"))
