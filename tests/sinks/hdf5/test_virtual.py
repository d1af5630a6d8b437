"""One file shows several to tools that know only HDF5."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec.sinks import HDF5Sink


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_other_tools_see_the_segments_as_one(tmp_path: Path) -> None:
    path, dtypes = tmp_path / "run.h5", [torch.bfloat16, torch.float8_e5m2, torch.bool, torch.complex64, torch.int16]
    sink = HDF5Sink(path, segment_bytes=1 << 20, flush_seconds=0.01)
    with Recorder(torch.nn.Identity(), keep_module=True, sink=sink) as rec:
        for i in range(60):
            for dtype in dtypes:
                rec.log(torch.full((3, 2000), i % 2).to(dtype))
            rec.step(reward=i)
            if not i:
                rec.flush()
    assert len(list(tmp_path.iterdir())) > 2
    recording = fastrec.load(path)
    with h5py.File(path) as file:
        assert file.attrs["segment"] < -1
        values = {data_set.attrs["torch_dtype"]: data_set for data_set in file["data"].values()}
        for dtype in dtypes:
            data_set = values[str(dtype).removeprefix("torch.")]
            expected = torch.cat([r.activation for r in recording if r.activation.dtype == dtype])  # type: ignore[union-attr, misc]
            if dtype == torch.float8_e5m2:
                expected = expected.view(torch.uint8)
            shown = torch.from_numpy(data_set[:]).reshape(-1, 2000)
            assert data_set.is_virtual and torch.equal(shown, expected.to(shown.dtype))
        (steps,) = file["steps"].values()
        assert np.array_equal(steps["column:reward"], np.arange(60))
