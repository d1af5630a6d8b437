"""The options of a file: which values are allowed, and what they do to the values that are kept."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fastrec
from fastrec import CaptureSpec, Recorder
from fastrec._errors import MissingExtraError, OptionError
from fastrec.sinks import HDF5Sink, RAMSink


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_bytes": 0}, "block_bytes=0.: give a whole number of bytes from 1 up"),
        ({"flush_rows": 0}, "flush_rows=0.: give a number of records from 1 up"),
        ({"flush_seconds": 0}, "flush_seconds=0.: give a number of seconds above 0"),
        ({"flush_seconds": True}, "flush_seconds=True.: give a number of seconds"),
        ({"durable": 1}, "durable=1.: give True or False"),
        ({"dtype": torch.int8}, "dtype=torch.int8.: give a floating dtype"),
        ({"dtype": "half"}, "dtype='half'.: give a floating dtype"),
        ({"compression": "zip"}, "compression='zip'.: give 'gzip' or 'lzf' or 'zstd' or 'lz4'"),
        ({"compression": "lzf:3"}, "compression='lzf:3'.: give"),
        ({"compression": 3}, "compression=3.: give"),
        ({"locking": None}, "locking=None.: give True or False"),
        ({"append": True, "overwrite": True}, "removes an earlier recording and append continues it; give one of them"),
        ({"blocks": 1}, "the options are block_bytes"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        HDF5Sink("run.h5", **options)


def test_an_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(MissingExtraError, match=r"compression='zstd'\) needs hdf5plugin.*'fastrec-torch\[zstd\]'"):
        HDF5Sink("run.h5", compression="zstd")
    HDF5Sink("run.h5", compression="gzip")


def test_floating_values_are_cast_and_others_are_not(tmp_path: Path) -> None:
    sink = HDF5Sink(tmp_path / "run.h5", dtype=torch.float16)
    values = [torch.randn(3), torch.randn(3, dtype=torch.float64), torch.arange(3), torch.randn(3) + 1j]
    with Recorder(torch.nn.Identity(), keep_module=True, sink=[RAMSink(), sink]) as rec:
        for value in values:
            rec.log(value)
    read = [record.activation for record in fastrec.load(sink.path)]
    assert [value.dtype for value in read] == [torch.float16, torch.float16, torch.int64, torch.complex64]
    assert all(torch.equal(value, original.to(value.dtype)) for value, original in zip(read, values, strict=True))
    assert [record.activation.dtype for record in rec.recording] == [value.dtype for value in values]
    sink = HDF5Sink(tmp_path / "named.h5", dtype=torch.float16)
    with Recorder(torch.nn.Identity(), keep_module=True, capture=CaptureSpec(dtype=torch.bfloat16), sink=sink) as rec:
        rec.log(values[0])
    assert fastrec.load(sink.path)[0].activation.dtype == torch.bfloat16
