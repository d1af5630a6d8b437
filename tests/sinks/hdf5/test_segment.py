"""Room is planned, used up, and not there any more once a file is finished."""

import os
from pathlib import Path

import h5py
import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5.source import HDF5Source
from tests.contracts.sink import Rig, check_source
from tests.sinks.hdf5.verified import check_checksums


@pytest.mark.slow
def test_a_large_file_is_little_larger_than_its_values(tmp_path: Path) -> None:
    model, x = torch.nn.Sequential(*(torch.nn.Tanh() for _ in range(3)), torch.nn.Flatten(0)), torch.randn(64, 1024)
    sink = HDF5Sink(tmp_path / "run.h5")
    with Recorder(model, keep_module=["0", "1", "2", "3"], sink=sink), torch.no_grad():
        for _ in range(150):  # 150 MiB, more than is written anew
            model(x)
    assert os.listdir(tmp_path) == ["run.h5"]
    assert 150 << 20 < os.path.getsize(sink.path) < 200 << 20
    assert fastrec.load(sink.path).stack("3").shape == (150, 64 * 1024)


@pytest.mark.parametrize("segment_bytes", [1 << 20, 1 << 30])
def test_thousands_of_shapes_at_one_site_come_back(tmp_path: Path, segment_bytes: int) -> None:
    rig = Rig(HDF5Sink(tmp_path / "run.h5", segment_bytes=segment_bytes, flush_seconds=0.02))
    values = [torch.full((1 + i % 7, i // 7) if i % 3 else (i,), float(i)) for i in range(700)]
    for value in values:
        rig.one_pass(value)
    rig.pass_log.close()
    check_source(HDF5Source(tmp_path / "run.h5"), [(i, "a", value) for i, value in enumerate(values)])
    check_checksums(tmp_path / "run.h5")


def test_late_sites_have_data_sets_once_a_file_is_finished(tmp_path: Path) -> None:
    rig = Rig(HDF5Sink(tmp_path / "run.h5", block_bytes=64))
    expected = []
    for i in range(60):
        values = [(name, torch.full((3,), i + j / 8)) for j, name in enumerate("abcd"[: 1 + i // 15])]
        rig.one_pass(*values)
        expected += [(i, name, value) for name, value in values]
        rig.mark(i, **{f"column{i // 20}": i})
        if i % 15 == 0:
            rig.sink.flush()  # type: ignore[attr-defined]
    rig.pass_log.close()
    source = HDF5Source(tmp_path / "run.h5")
    check_source(source, expected)
    (steps,) = source.steps()
    assert [int(steps.columns["column2"][i]) for i in range(40, 60)] == list(range(40, 60))
    check_checksums(tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        assert not len(file["late"]) and {data_set.attrs["of"] for data_set in file["data"].values()} == set("abcd")
        assert (file["records"]["row"] >= 0).all() and (file["marks"]["row"] >= 0).all()
        assert file["data/d"][:, 0].tolist() == [i + 3 / 8 for i in range(45, 60)]


@pytest.mark.parametrize("rounds", range(5))
def test_one_pass_may_lie_in_many_segments(tmp_path: Path, rounds: int) -> None:
    rig = Rig(HDF5Sink(tmp_path / "run.h5", segment_bytes=1 << 20, queue_bytes=1 << 18, flush_seconds=100))
    info, values = rig.begin(), [torch.full((300, 400 + 2 * (i % 2)), float(i)) for i in range(40)]
    rig.commit(info, [rig.append("ab"[i % 2], value) for i, value in enumerate(values)])
    rig.pass_log.close()
    assert len(list(tmp_path.iterdir())) > 2
    check_source(HDF5Source(tmp_path / "run.h5"), [(0, "ab"[i % 2], value) for i, value in enumerate(values)])
