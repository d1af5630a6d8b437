"""A reader that knows only docs/files.md reads what fastrec reads."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec.files import merge
from fastrec.sinks import HDF5Sink
from tests.sinks.hdf5 import by_the_page


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def record(path: str, passes: int = 12, rows: int = 1, **options: object) -> None:
    with Recorder(Model(), keep_module=True, keep_op="linear", sink=HDF5Sink(path, **options)) as rec:
        run(rec, passes, rows)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.narrow = torch.nn.Linear(2, 3), torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(self.layer(x).bfloat16())


def run(rec: Recorder, passes: int, rows: int = 1) -> None:
    for i in range(passes):
        with rec.phase("eval" if i % 5 == 4 else "rollout"):
            rec.log(torch.full((rows + i % 3, 2), float(i)))
            rec.step(reward=[i, -i], **({"value": i / 2} if i > 3 else {}))


def assert_page_is_right(path: str = "run.h5", checksums: int = 5) -> None:
    found, wanted = by_the_page.read(path), fastrec.load(path)
    assert len(found.records) == len(wanted)
    assert found.checksums >= checksums
    for record, wanted_record in zip(found.records, wanted, strict=True):
        ctx = wanted_record.ctx
        assert (record.pass_index, record.label, record.site) == (ctx.pass_index, ctx.label, ctx.site)
        assert (record.phase, record.step) == (ctx.phase, ctx.step)
        assert wanted_record.activation is not None
        assert record.shape == tuple(wanted_record.activation.shape)
        assert record.value == wanted_record.activation.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    steps = wanted.steps
    assert [(phase, step) for phase, step, _ in found.steps] == list(zip(steps.phase, steps.step, strict=True))
    for i, (_, _, columns) in enumerate(found.steps):
        for name in steps:
            is_given = not np.ma.getmaskarray(steps[name])[i].all()
            assert (name in columns) == is_given
            if is_given:
                assert np.array_equal(columns[name], steps[name][i])


def test_a_finished_file() -> None:
    record("run.h5")
    assert_page_is_right()


def test_a_compressed_file() -> None:
    record("run.h5", compression="gzip")
    assert_page_is_right()


def test_a_file_in_another_dtype() -> None:
    record("run.h5", dtype=torch.float16)
    assert_page_is_right()


def test_several_segments() -> None:
    record("run.h5", passes=90, rows=2000, segment_bytes=1 << 20, block_bytes=1 << 12)
    assert Path("run.00001.h5").exists()
    assert_page_is_right()


def test_a_recording_that_was_continued() -> None:
    record("run.h5", passes=7)
    record("run.h5", passes=9, append=True)
    record("run.h5", passes=6, append=True)
    assert_page_is_right()


def test_a_recording_that_grows() -> None:
    with Recorder(Model(), keep_module=True, sink=HDF5Sink("run.h5", segment_bytes=1 << 20)) as rec:
        run(rec, 2)
        rec.flush()
        run(rec, 10)
        rec.flush()
        assert by_the_page.read("run.h5").records[-1].pass_index == 11
        assert_page_is_right(checksums=0)


@pytest.mark.parametrize("virtual", [False, True], ids=["copied", "virtual"])
def test_merged_recordings(virtual: bool) -> None:
    os.makedirs("ranks")
    for rank in range(3):
        record(f"ranks/{rank}.h5", passes=4 + rank)
    merge([f"ranks/{rank}.h5" for rank in range(3)], "run.h5", virtual=virtual)
    assert_page_is_right()
