"""Values and sites that are out of the ordinary."""

import os
from pathlib import Path

import h5py
import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec._errors import UnsupportedTensorError
from fastrec.sinks import HDF5Sink, RAMSink
from fastrec.sinks.hdf5.source import HDF5Source
from tests.contracts.sink import Rig, check_source
from tests.sinks.verified import check_checksums


def test_sites_may_have_any_name(tmp_path: Path) -> None:
    names = ["", "a/b", "a", "..", "ü" * 200, "ü" * 200 + "x", "new\nline", "nul\0", "'\"\\", "data", "a|b", " "]
    rig = Rig(HDF5Sink(tmp_path / "run.h5"))
    values = [torch.full((2,), float(i)) for i in range(len(names))]
    for _ in range(2):
        rig.one_pass(*zip(names, values, strict=True))
    rig.pass_log.close()
    expected = [(i, name, value) for i in range(2) for name, value in zip(names, values, strict=True)]
    check_source(HDF5Source(tmp_path / "run.h5"), expected)
    with h5py.File(tmp_path / "run.h5") as file:
        assert len(file["data"]) == len(names)
        assert {made.attrs["of"] for made in file["data"].values()} == {name.replace("\0", "␀") for name in names}


def test_modules_may_have_any_name(tmp_path: Path) -> None:
    model = torch.nn.Sequential()
    for name in ("a/b", "x y", "π", "self#2"):
        model.add_module(name, torch.nn.Identity())
    with Recorder(model, keep_module=True, sink=tmp_path / "run.h5"):
        model(torch.ones(2))
    recording = fastrec.load(tmp_path / "run.h5")
    for name in ("a/b", "x y", "π", "self#2"):
        assert recording.stack(f"module:{name}").shape == (1, 2)


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
        assert not len(file["late"]) and {made.attrs["of"] for made in file["data"].values()} == set("abcd")
        assert (file["records"]["row"] >= 0).all() and (file["marks"]["row"] >= 0).all()
        assert file["data/d"][:, 0].tolist() == [i + 3 / 8 for i in range(45, 60)]


def test_values_of_many_dimensions_come_back(tmp_path: Path) -> None:
    rig = Rig(HDF5Sink(tmp_path / "run.h5"))
    values = [torch.ones((1,) * 31 + (2,)), torch.ones((1,) * 40), torch.ones((2,) + (1,) * 30)]
    for value in values:
        rig.one_pass(value)
    rig.pass_log.close()
    check_source(HDF5Source(tmp_path / "run.h5"), [(i, "a", value) for i, value in enumerate(values)])


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning", "ignore:.*quantiz.*:DeprecationWarning")
def test_a_quantized_tensor_is_refused_with_the_reason(tmp_path: Path) -> None:
    rig = Rig(HDF5Sink(tmp_path / "run.h5"))
    with pytest.raises(UnsupportedTensorError, match=r"a quantized tensor \(torch.qint8\) can't be recorded"):
        rig.append("a", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
    rig.one_pass(torch.ones(3))
    rig.pass_log.close()
    assert HDF5Source(tmp_path / "run.h5").n_passes() == 1


@pytest.mark.long
def test_values_of_gigabytes_come_back(tmp_path: Path) -> None:
    sizes = [(1 << 30) + 3, (1 << 31) + 12345, 5, (1 << 31) - 1]
    sink = HDF5Sink(tmp_path / "run.h5", queue_bytes=1 << 20)
    with Recorder(torch.nn.Identity(), keep_module=True, sink=sink) as rec:
        for i, size in enumerate(sizes):
            rec.log(_of(size, i))
            rec.flush()
    check_checksums(tmp_path / "run.h5")
    for i, (record, size) in enumerate(zip(fastrec.load(tmp_path / "run.h5"), sizes, strict=True)):
        assert torch.equal(record.activation, _of(size, i))  # type: ignore[arg-type]
    for name in os.listdir(tmp_path):
        os.unlink(tmp_path / name)


def _of(size: int, seed: int) -> torch.Tensor:
    value = torch.empty(size, dtype=torch.uint8)
    piece = (torch.arange(1_000_003) * (seed + 3) % 251).to(torch.uint8)
    for start in range(0, size, len(piece)):
        part = value[start : start + len(piece)]
        part.copy_(piece[: len(part)])
    return value


def bits(value: torch.Tensor) -> list[int]:
    """The bytes of a tensor of any dtype and layout, of which torch itself can do little with some."""
    flat = torch.empty(value.shape, dtype=value.dtype)
    flat.untyped_storage().copy_(value.clone(memory_format=torch.contiguous_format).untyped_storage())
    return flat.untyped_storage().tolist()


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_dtype_comes_back_or_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    dtypes = sorted({made for made in vars(torch).values() if isinstance(made, torch.dtype)}, key=str)
    expected, refused = [], set()
    sinks = [RAMSink(), HDF5Sink(tmp_path / "run.h5"), HDF5Sink(tmp_path / "packed.h5", compression="gzip")]
    with Recorder(torch.nn.Identity(), keep_module=True, sink=sinks) as rec:
        for dtype in dtypes:
            given = torch.randint(0, 256, (3, 4 * dtype.itemsize), dtype=torch.uint8)
            if "qint" in str(dtype) or "quint" in str(dtype):
                continue  # a quantized tensor is no view of bytes
            value = given > 99 if dtype == torch.bool else given.view(dtype)
            for one in (value, value[0], value[0, 0], value[:0], value[:, ::2], value.T, value):
                try:
                    rec.log(one)
                    expected.append(one)
                except UnsupportedTensorError:
                    refused.add(str(dtype))
    assert refused == {f"torch.{sign}int{size}" for sign in ("", "u") for size in range(1, 8)}
    for found in (rec.recording, fastrec.load(tmp_path / "run.h5"), fastrec.load(tmp_path / "packed.h5")):
        for record, one in zip(found, expected, strict=True):
            assert record.activation is not None
            assert (record.activation.dtype, record.activation.shape) == (one.dtype, one.shape)
            assert bits(record.activation) == bits(one)
