"""Memory for what waits to be written is bounded, and a forked child stays away from it."""

import os
import time
from pathlib import Path

import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec.sinks import HDF5Sink


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


def test_memory_that_waits_for_the_disk_is_bounded_even_within_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def write_slowly(*args: object) -> int:
        time.sleep(0.001)
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("fastrec.sinks.hdf5.layout.os.pwrite", write_slowly)
    model, most_waiting = torch.nn.Identity(), 0
    sink = HDF5Sink(tmp_path / "run.h5", queue_bytes=1 << 20)
    with Recorder(model, keep_module=True, sink=sink) as rec:
        with rec.region():
            for i in range(300):
                model(torch.full((50_000,), float(i)))
                most_waiting = max(most_waiting, sink.statistics()["bytes_waiting"])
    assert (1 << 20) <= most_waiting <= 2 << 20
    assert sink.statistics()["waits"] > 0
    assert fastrec.load(tmp_path / "run.h5").stack("module:")[:, 0].tolist() == list(range(300))
