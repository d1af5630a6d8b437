"""Every byte that a record speaks of is compared with what was written."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import fastrec
from fastrec.files import verify
from fastrec.predicates import module
from fastrec.sinks import HDF5Sink


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def record(path: str = "run.h5", passes: int = 50, **options: object) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    keep = module("0") | module("2").with_(transform=lambda value: value.sum(0), save_raw=False)
    with fastrec.Recorder(model, keep_module=keep, keep_op="relu", sink=HDF5Sink(path, **options)) as rec:
        for i in range(passes):
            model(torch.full((2, 3), float(i)))
            rec.step(reward=i)


def place_of(name: str, path: str = "run.h5") -> tuple[int, int]:
    """Where the bytes of a data set begin in a file, and how many there are."""
    with h5py.File(path) as file:
        return file[name].id.get_offset(), file[name].size * file[name].dtype.itemsize


def flip(position: int, path: str = "run.h5") -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 16]))


def test_a_recording_is_as_it_was_written() -> None:
    record()
    result = verify("run.h5")
    assert (result.damage, result.unchecked, result.files) == ([], 0, 1)
    values = 50 * (2 * 4 + 2 * 4 + 2) * 4
    assert result.nbytes > values
    assert result.checksums > 5


@pytest.mark.parametrize(
    ("name", "of"), [("data/0", "0"), ("data/2", "2"), ("data/1|relu", "1/relu"), ("steps/value", "")]
)
def test_any_changed_byte_of_a_data_set_is_found(name: str, of: str) -> None:
    record()
    offset, size = place_of(name)
    for place in (0, size // 2, size - 1):
        flip(offset + place)
        assert [(block.data_set, block.of) for block in verify("run.h5").damage] == [(name, of)]
        flip(offset + place)
    assert verify("run.h5").damage == []


def test_a_changed_time_in_the_index_is_found() -> None:
    record()
    with h5py.File("run.h5") as file:
        position = file["records"].id.get_offset() + file["records"].dtype.fields["time"][1]
    flip(position)
    assert [block.data_set for block in verify("run.h5").damage] == ["records"]


def test_segments_are_all_compared() -> None:
    record(passes=3000, segment_bytes=1 << 20, block_bytes=1 << 14)
    result = verify("run.h5")
    assert result.files > 1
    assert (result.damage, result.unchecked) == ([], 0)
    path = "run.00001.h5"
    flip(place_of("data/0", path)[0], path)
    assert [(block.file, block.data_set) for block in verify("run.h5").damage] == [(path, "data/0")]


def test_late_values_are_compared() -> None:
    model = torch.nn.Identity()
    with fastrec.Recorder(model, keep_module=True, sink="run.h5") as rec:
        model(torch.ones(2))
        rec.flush()
        for size in range(3, 40):
            model(torch.ones(size))
        rec.flush()
        assert verify("run.h5").damage == []
        with h5py.File("run.00000.h5.tmp", "r") as file:
            position = file["late"].id.get_chunk_info(0).byte_offset
        flip(position, "run.00000.h5.tmp")
        damage = verify("run.h5").damage
        flip(position, "run.00000.h5.tmp")
    assert [(block.data_set, block.of) for block in damage] == [("late", ":out")]
    assert verify("run.h5").damage == []


def test_progress_ends_at_the_total() -> None:
    record()
    reports: list[tuple[int, int]] = []
    result = verify("run.h5", lambda done, total: reports.append((done, total)))
    assert reports[-1] == (result.nbytes, result.nbytes)
    assert np.all(np.diff([done for done, _ in reports]) >= 0)


def test_a_growing_recording_can_be_compared() -> None:
    model = torch.nn.Linear(2, 2)
    with fastrec.Recorder(model, keep_op="linear", sink="run.h5") as rec:
        for _ in range(5):
            model(torch.ones(1, 2))
        rec.flush()
        result = verify("run.h5")
    assert result.damage == []
    assert result.files == 1


def test_there_is_nothing_to_verify() -> None:
    with pytest.raises(fastrec.FastrecError, match="there is no recording at 'none.h5'"):
        verify("none.h5")
