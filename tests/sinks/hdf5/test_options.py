"""What the options of a file do."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import fastrec
from fastrec import CaptureSpec, Recorder
from fastrec._errors import MissingExtraError, OptionError, RecordingFileError
from fastrec.sinks import HDF5Sink, RAMSink
from fastrec.sinks.hdf5.checksums import MIN_THREADED_BYTES as LARGE, PAGE_BYTES as PAGE, Counters, checksum, read_counters
from tests.sinks.hdf5.verified import check_checksums

MODEL = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))


def record(sink: HDF5Sink, passes: int = 200, **options: Any) -> Recorder:
    """The same records in RAM and in a file."""
    with Recorder(MODEL, keep_op=True, sink=[RAMSink(), sink], **options) as rec, torch.no_grad():
        for i in range(passes):
            MODEL(torch.randn(4 + i % 2, 64))
            rec.step(number=i)
    return rec


@pytest.mark.parametrize("compression", ["gzip", "gzip:9", "lzf", "zstd", "zstd:7", "lz4"])
def test_compressed_files_are_smaller_and_read_the_same(tmp_path: Path, compression: str) -> None:
    if compression.startswith(("zstd", "lz4")):
        pytest.importorskip("hdf5plugin")
    plain, packed = HDF5Sink(tmp_path / "plain.h5"), HDF5Sink(tmp_path / "packed.h5", compression=compression)
    small = HDF5Sink(tmp_path / "small.h5", compression=compression, segment_bytes=1 << 20, flush_seconds=0.01)
    with Recorder(MODEL, keep_op=True, sink=[RAMSink(), plain, packed, small]) as rec:
        for i in range(100):
            MODEL(torch.ones(4 + i % 2, 64) * i)
            rec.step(number=i)
    for sink in (packed, small):
        found = fastrec.load(sink.path)
        assert all(
            torch.equal(one.activation, other.activation)  # type: ignore[arg-type]
            for one, other in zip(found, rec.recording, strict=True)
        )
        assert found.steps["number"].tolist() == list(range(100))
        check_checksums(Path(sink.path))
    assert (tmp_path / "packed.h5").stat().st_size < 0.8 * (tmp_path / "plain.h5").stat().st_size
    with h5py.File(packed.path) as file:
        assert all(made.id.get_create_plist().get_nfilters() for made in file["data"].values())


def test_an_extra_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastrec.sinks.hdf5.options.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"compression='zstd'\) needs hdf5plugin.*'fastrec\[zstd\]'"):
        HDF5Sink("run.h5", compression="zstd")
    HDF5Sink("run.h5", compression="gzip")


def test_a_packed_file_whose_filter_is_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(HDF5Sink(tmp_path / "run.h5", compression="gzip"), 20)

    def fails(*_: object, **__: object) -> Any:
        raise OSError("required filter 'zstd' is not registered")

    monkeypatch.setattr("fastrec.sinks.hdf5.structure.h5py.File", fails)
    for module in ("hdf5.reader", "hdf5.structure"):
        monkeypatch.setattr(f"fastrec.sinks.{module}.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs hdf5plugin, which is not installed.*fastrec\[zstd\]"):
        _ = [kept.activation for kept in fastrec.load(tmp_path / "run.h5")]


def test_floating_values_are_cast_and_others_are_not(tmp_path: Path) -> None:
    sink = HDF5Sink(tmp_path / "run.h5", dtype=torch.float16)
    values = [torch.randn(3), torch.randn(3, dtype=torch.float64), torch.arange(3), torch.randn(3) + 1j]
    with Recorder(torch.nn.Identity(), keep_module=True, sink=[RAMSink(), sink]) as rec:
        for value in values:
            rec.log(value)
    found = [record.activation for record in fastrec.load(sink.path)]
    assert [value.dtype for value in found] == [torch.float16, torch.float16, torch.int64, torch.complex64]
    assert all(torch.equal(one, other.to(one.dtype)) for one, other in zip(found, values, strict=True))
    assert [record.activation.dtype for record in rec.recording] == [value.dtype for value in values]
    sink = HDF5Sink(tmp_path / "named.h5", dtype=torch.float16)
    with Recorder(torch.nn.Identity(), keep_module=True, capture=CaptureSpec(dtype=torch.bfloat16), sink=sink) as rec:
        rec.log(values[0])
    assert fastrec.load(sink.path)[0].activation.dtype == torch.bfloat16


def test_so_many_records_are_flushed_by_themselves(tmp_path: Path) -> None:
    sink = HDF5Sink(tmp_path / "run.h5", flush_rows=10, flush_seconds=1000)
    with Recorder(torch.nn.Identity(), keep_module=True, sink=sink) as rec:
        for _ in range(9):
            rec.log(torch.zeros(2))
        time.sleep(0.1)
        assert sink.statistics()["records_flushed"] == 0
        rec.log(torch.zeros(2))
        until = time.monotonic() + 20
        while sink.statistics()["records_flushed"] < 10 and time.monotonic() < until:
            time.sleep(0.01)
        assert sink.statistics()["records_flushed"] == sink.statistics()["passes_flushed"] == 10
        assert fastrec.load(sink.path).n_passes == 10


def test_passes_that_kept_nothing_take_no_room(tmp_path: Path) -> None:
    sink = HDF5Sink(tmp_path / "run.h5", flush_seconds=0.01)
    with pytest.warns(fastrec.FastrecWarning, match="matched"), torch.no_grad():
        with Recorder(MODEL, keep_op="nosuch", sink=sink) as rec:
            for _ in range(3):
                for _ in range(500):
                    MODEL(torch.zeros(1, 64))
                rec.flush()
                assert fastrec.load(sink.path).n_passes == sink.statistics()["passes_flushed"]
    assert fastrec.load(sink.path).n_passes == 1500
    assert os.path.getsize(sink.path) < 32 * 1024
    with h5py.File(sink.path) as file:
        assert len(file["passes"]) == 0 and max(file["counters"]["begun"]) == 1500


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


def test_memory_of_many_sites_stays_below_the_limit(tmp_path: Path) -> None:
    sink = HDF5Sink(tmp_path / "run.h5", queue_bytes=1 << 20, flush_seconds=0.05)
    model = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(100)))
    value = torch.randn(16, 8)
    with Recorder(model, keep_module=True, sink=sink):
        for _ in range(300):
            model(value)
    pool = sink._pool
    assert sum(stage.next_count * stage.row_bytes for stage in pool.stages) <= 1 << 20
    assert sink.statistics()["most_bytes_waiting"] <= 2 << 20
    assert fastrec.load(sink.path).stack("7").shape == (300, 16, 8)


def test_paths_are_those_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HDF5Sink("run.{rank}.h5").path == "run.0.h5"
    monkeypatch.setenv("RANK", "3")
    sink = HDF5Sink(tmp_path / "run.{rank}.{pid}.{worker}.h5")
    assert Path(sink.path).name == f"run.3.{os.getpid():07d}.0.h5"
    monkeypatch.setenv("RANK", "4")
    record(sink, 1)
    assert Path(sink.path).name == f"run.4.{os.getpid():07d}.0.h5"
    with h5py.File(sink.path) as file:
        assert (file.attrs["rank"], file.attrs["pid"], file.attrs["session"]) == (4, os.getpid(), 0)
    assert HDF5Sink("a{{b}}.h5").path == "a{b}.h5"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("run.{step}.h5", r"has the field {step}; the fields are {rank}, {pid}, {worker}, {host}"),
        ("run.{rank:05d}.h5", r"has the field {rank}.*without a format"),
        ("run.{.h5", "makes no sense as a pattern"),
        ("run.00001.h5", "is what a segment of 'run.h5' would be called"),
    ],
)
def test_paths_that_make_no_sense_are_told(path: str, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        HDF5Sink(path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"flush_rows": 0}, "flush_rows=0.: give a number of records from 1 up"),
        ({"flush_seconds": True}, "flush_seconds=True.: give a number of seconds"),
        ({"dtype": torch.int8}, "dtype=torch.int8.: give a floating dtype"),
        ({"dtype": "half"}, "dtype='half'.: give a floating dtype"),
        ({"compression": "zip"}, "compression='zip'.: give 'gzip' or 'lzf' or 'zstd' or 'lz4'"),
        ({"compression": "lzf:3"}, "compression='lzf:3'.: give"),
        ({"compression": 3}, "compression=3.: give"),
        ({"locking": None}, "locking=None.: give True or False"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        HDF5Sink("run.h5", **options)


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fastrec.sinks.hdf5.paths.fcntl.flock", none)
    with pytest.raises(RecordingFileError, match="has no locks; give HDF5Sink\\(..., locking=False\\)"):
        record(HDF5Sink(tmp_path / "run.h5"), 1)
    assert not list(tmp_path.iterdir())
    record(HDF5Sink(tmp_path / "run.h5", locking=False), 1)
    assert fastrec.load(tmp_path / "run.h5").n_passes == 1


@pytest.mark.parametrize("size", [0, 1, 7, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, LARGE + 5])
def test_any_change_of_a_byte_changes_the_checksum(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    before = checksum(data)
    for at in {0, size // 2, size - 1} if size else ():
        for bit in (0, 7):
            data[at] ^= 1 << bit
            assert checksum(data) != before
            data[at] ^= 1 << bit
    assert checksum(data) == before
    if size >= 3 * PAGE:  # pages that changed places
        assert checksum(np.concatenate([data[PAGE : 2 * PAGE], data[:PAGE], data[2 * PAGE :]])) != before


def test_the_counters_that_were_written_last_count() -> None:
    first, second = Counters(1, 2).row(4), Counters(3, 4, closed=True).row(5)
    assert read_counters(np.concatenate([first, second])) == Counters(3, 4, True)
    second[10] ^= 1
    assert read_counters(np.concatenate([first, second])) == Counters(1, 2)
    assert read_counters(np.zeros_like(np.concatenate([first, second]))) is None
